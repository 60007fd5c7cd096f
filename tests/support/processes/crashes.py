"""Ends as a process does whose memory is damaged."""

import os

os.abort()
