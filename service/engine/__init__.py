"""The heart: which step may run (rules), which run together (step queue), and the engine around them."""
