"""One attempt at one job: its phases, its record on disk, and how it is cleaned up."""
