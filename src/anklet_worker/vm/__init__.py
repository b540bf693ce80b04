"""Virtual machines: the driver contract, the drivers, and what they share."""
