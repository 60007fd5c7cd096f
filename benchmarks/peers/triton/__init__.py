"""Triton with the same step graph, its sequences kept in memory by its Python backend."""
