"""What the supervisor decides. Pure."""
