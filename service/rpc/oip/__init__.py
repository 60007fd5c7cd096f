"""The Open Inference Protocol: sequences of its callers are sessions, their requests are chunks."""
