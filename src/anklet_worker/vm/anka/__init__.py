"""The driver for Veertu's Anka."""
