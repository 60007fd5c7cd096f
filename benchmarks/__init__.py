"""Measurements, apart from the tests: no test asserts a time."""
