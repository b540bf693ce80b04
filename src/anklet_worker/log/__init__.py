"""A worker's log lines and what is redacted in them."""
