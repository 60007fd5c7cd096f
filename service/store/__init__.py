"""Where sessions live: the record codec, the store protocol and its implementation in Redis or Valkey."""
