"""What the networks of other shapes learn from: made by seeded generators, or found on every machine.

Numpy and the standard library only, so that a server without torch can stream it (`holdfast demo`).
"""
