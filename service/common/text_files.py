"""Text of files that people edit, on whatever system. Pure."""

import codecs


def decoded(content: bytes) -> str:
    """Returns the text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    The latter is what `>` of Windows PowerShell writes.

    Raises:
        UnicodeDecodeError: It is neither.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def without_mark(content: bytes) -> bytes:
    """Returns what a file holds, as UTF-8 without a byte order mark if it has one; else as it is.

    Raises:
        UnicodeDecodeError: It has the mark of UTF-16, and is not.
    """
    marks = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return decoded(content).encode() if content.startswith(marks) else content
