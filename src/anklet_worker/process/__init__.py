"""This process and its children: orders it obeys, commands it runs."""
