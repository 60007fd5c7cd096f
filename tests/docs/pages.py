"""The pages of the project, their links, headings and blocks of code."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")])

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code.

    Attributes:
        page: Its page, from the root.
        kind: The word behind the fence.
        text: What is in it.
    """

    page: str
    kind: str
    text: str


def blocks(kind):
    """Returns the blocks of a kind, of all pages."""
    return [block for page in PAGES for block in _blocks(page) if block.kind == kind]


def kinds():
    """Returns every kind of block that there is."""
    return {block.kind for page in PAGES for block in _blocks(page)}


def links(page):
    """Yields what a page links to, as written."""
    text = _BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            yield target


def anchors(page):
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _blocks(page):
    name = str(page.relative_to(ROOT))
    return [Block(name, kind, text) for kind, text in _BLOCK.findall(page.read_text())]
