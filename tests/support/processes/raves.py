"""Says far too much, nothing of which should reach a terminal, and does not end."""

import os
import time

os.write(1, b"\x1b[2J\r\n\x00\xff" * 10_000)
time.sleep(5)
