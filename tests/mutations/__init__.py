"""Mutations of the pure files by mutmut, and the floors of their scores: `make mutations`."""
