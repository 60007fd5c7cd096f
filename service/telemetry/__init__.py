"""What a server says of itself: metrics and the log."""
