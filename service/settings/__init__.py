"""The settings of a server, and what is checked of them before it starts."""
