"""Which execution providers of onnxruntime run the graphs: its CPU by default. Pure."""

from typing import NamedTuple

CPU = "CPUExecutionProvider"


class Providers(NamedTuple):
    """What `--providers` says.

    Attributes:
        names: Each node of a graph is run by the first of them that can.
        most_rows: Most rows of a run, since a device has the memory that it has; None: any number.
    """

    names: tuple[str, ...] = (CPU,)
    most_rows: int | None = None

    def rows_per_run(self, asked: int | None) -> int | None:
        """Returns the lower one of the bound and that of a model's contract."""
        limits = [limit for limit in (self.most_rows, asked) if limit is not None]
        return min(limits, default=None)


def parse_providers(text: str) -> Providers:
    """Reads `NAME,NAME=ROWS`.

    Raises:
        ValueError: It is not of this form, or names a provider twice.
    """
    names: list[str] = []
    bounds: list[int] = []
    for entry in filter(None, map(str.strip, text.split(","))):
        name, equals, rows = entry.partition("=")
        if not name.isalnum() or (equals and not (rows.isascii() and rows.isdecimal() and int(rows) >= 1)):
            raise ValueError("expected names of onnxruntime's providers, as in CUDAExecutionProvider=256")
        if name in names:
            raise ValueError(f"it names {name} twice")
        names.append(name)
        bounds += [int(rows)] if equals else []
    if not names:
        raise ValueError(f"it names no provider; the default is {CPU}")
    return Providers(tuple(names), min(bounds, default=None))
