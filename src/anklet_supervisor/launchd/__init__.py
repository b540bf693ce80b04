"""The launchd agent."""
