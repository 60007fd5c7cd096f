"""Turns whole-sequence graphs into step graphs: what is read across time, what is kept, what is refused.

A graph is translated node by node. Beside each tensor goes what its axes stand for (`axes`, `value`); a
rule for each operator (`elementwise`, `shaping`, `mixing`, `windows`, `cells`, `bodies`) says what becomes
of them, or refuses. A graph that is translated to its end is causal and treats rows alike, by construction.
onnx and numpy only.
"""
