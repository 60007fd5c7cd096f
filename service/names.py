"""Characters that no name may have: of sessions, of models and their tensors. Pure.

They are listed. What `str.isprintable` refuses follows the Unicode tables of the interpreter, so that
replicas on two versions of Python would not agree on which sessions there are.
"""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Controls, line and paragraph separator, and half characters, which are in no text that can be sent."""


def control_character(name: str) -> str | None:
    """Returns code point and index of the first character that no name may have; None if there is none."""
    found = _CONTROL.search(name)
    return None if found is None else f"U+{ord(found.group()):04X} at index {found.start()}"
