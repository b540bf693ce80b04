"""The commands for people: what they ask, and how the answer is drawn."""
