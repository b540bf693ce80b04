"""The github plugin: finds queued GitHub Actions jobs, and drives each in the VM that the core makes for it.

Start at `plugin.py`. This file imports nothing: the configuration's rules (`rules.py`) are read at every start and `check`, and
must not bring the HTTP client with them.
"""
