"""Where sessions live: the record codec, the store protocol and its Redis implementation."""
