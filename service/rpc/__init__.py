"""The gRPC edge: requests to chunks, outcomes to replies, errors to status. No rules live here."""
