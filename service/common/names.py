"""Characters that no name may have: of sessions, of models and their tensors. Pure.

They are listed. What `str.isprintable` refuses follows the Unicode tables of the interpreter, so that
replicas on two versions of Python would not agree on which sessions there are.
"""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Controls, line and paragraph separator, and half characters, which are in no text that can be sent."""

_UNSEEN = re.compile("[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
"""Characters without a width, and those that turn the direction of what follows."""


def control_character(name: str) -> str | None:
    """Returns code point and index of the first character that no name may have; None if there is none."""
    return _first(_CONTROL, name)


def unseen_character(name: str) -> str | None:
    """Returns the same of the first that makes a name look like another one."""
    return _first(_UNSEEN, name)


def without_controls(text: str) -> str:
    """Returns a text that is one line and can be sent, with Python's escapes for what no name may have."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def _first(wanted: re.Pattern[str], name: str) -> str | None:
    found = wanted.search(name)
    return None if found is None else f"U+{ord(found.group()):04X} at index {found.start()}"
