"""The gRPC edge: requests to work, outcomes to replies, errors to status. No rules live here."""
