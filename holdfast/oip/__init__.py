"""The Open Inference Protocol, which the server speaks beside its own contract."""
