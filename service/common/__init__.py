"""What every part of the service may import; nothing here imports a part."""
