"""Messages generated from proto/holdfast/oip/v2/oip.proto by `make proto`."""
