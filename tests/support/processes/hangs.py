"""Says nothing and does not end."""

import time

time.sleep(5)
