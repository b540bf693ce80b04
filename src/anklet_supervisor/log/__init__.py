"""The log file: its one writer and its reader."""
