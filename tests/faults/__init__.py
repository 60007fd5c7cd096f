"""What needs a kernel: signals, sockets, disks, and processes that die."""

import os

LONG = os.environ.get("HOLDFAST_FAULTS") == "long"
"""Whether tests may take minutes, as `make faults` lets them."""
