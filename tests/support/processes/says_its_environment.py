"""Says which settings of the server it was given."""

import os

os.write(1, repr({name: text for name, text in os.environ.items() if "HOLDFAST" in name}).encode())
