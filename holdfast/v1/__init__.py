"""Stubs generated from proto/holdfast/v1/holdfast.proto by `make proto`."""
