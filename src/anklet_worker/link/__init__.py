"""What passes between supervisor and worker: messages, the pipe, the setup at birth, the slot table."""
