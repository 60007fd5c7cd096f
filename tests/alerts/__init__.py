"""The drill: every shipped alert is made to fire by its fault, and to clear when that is healed."""
