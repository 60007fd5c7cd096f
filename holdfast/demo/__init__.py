"""`holdfast demo`: a network's memory, served live, surviving the death of its server."""
