"""Ends by a signal that has a number and no name."""

import os

os.kill(os.getpid(), 40)
