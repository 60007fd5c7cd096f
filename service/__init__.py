"""The Holdfast server: `server` wires `rpc`, `engine`, `model` and `store` together."""
