"""The seam of the report: what one module of measurements hands over, and how it is asked to measure."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Ratio(NamedTuple):
    """A ratio of medians of one run, beside what is asked for.

    Attributes:
        name: What is compared.
        value: What was measured; None if it was not.
        at_least: Lower bound; None without one.
        at_most: Upper bound; None without one. With neither bound the ratio is only reported.
        note: Why it was not measured, or what to know about it.
    """

    name: str
    value: float | None
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the bounds hold; None if it was not measured or nothing is asked for."""
        if self.value is None or (self.at_least is None and self.at_most is None):
            return None
        if self.at_least is not None and self.value < self.at_least:
            return False
        return self.at_most is None or self.value <= self.at_most


class Section(NamedTuple):
    """One part of the report.

    Attributes:
        title: Its heading.
        text: Markdown below the heading: tables, and a word on what could not be measured.
        ratios: Shown in the report's one table of ratios, in the order of the sections.
        goals: Ratios that are the project's goals; shown in a table of their own at the end.
        data: Goes into report.json under the title; what `json.dumps` takes.
        plots: SVG by file name; written beside the report and shown below the text.
    """

    title: str
    text: str
    ratios: Sequence[Ratio] = ()
    data: Mapping[str, Any] = {}
    plots: Mapping[str, str] = {}
    goals: Sequence[Ratio] = ()


Measure = Callable[[Path, bool], Section]
"""How a module is asked: given an empty folder for stores and logs, and whether to be quick (a few
seconds, or a section that says it was left out). A module offers it as `measure(folder, quick)`, and
`benchmarks/__main__.py` lists it in SECTIONS."""
