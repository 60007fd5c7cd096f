"""The Holdfast server: `app` wires `rpc`, `engine`, `model` and `store` together."""
