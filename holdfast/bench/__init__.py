"""`holdfast bench`: loads a server and says how fast it answers."""
