"""Is this host fit: the examination and its view."""
