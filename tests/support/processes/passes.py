"""Passes a file, and claims what nobody has heard of, with characters that are not for a log."""

import os

os.write(1, b"ok: a \x1b[2J, wall")
