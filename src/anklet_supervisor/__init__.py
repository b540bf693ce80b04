"""The host: one supervisor process, one worker process for each configured service."""
