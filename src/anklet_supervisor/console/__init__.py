"""The commands that people type, and how their answers are drawn."""
