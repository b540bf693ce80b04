"""The configuration: from file and environment to typed values, every error at once."""
