"""The engine: a core that decides, a driver that performs, and what both are made of."""
