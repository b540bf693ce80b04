"""Log lines of a process, and the redaction of secrets in them."""
