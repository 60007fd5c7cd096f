"""What ends an export: one line on what is wrong, where, and what would be right."""


class ExportError(Exception):
    """The network cannot be served as it is, or its graph does not compute what it computes."""
