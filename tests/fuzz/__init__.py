"""Fuzzing: whatever bytes come in, what comes out is a value or one of our errors. See `harnesses`."""
