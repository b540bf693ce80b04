"""The driver for Tart."""
