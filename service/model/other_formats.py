"""Says what a file looks like that is no ONNX file, and what to do about it. Pure.

Only the first bytes are looked at, which is enough for people: nothing is served by what is said here. No
ONNX file begins with any of these: its first field is a number, a text or a message of a model.
"""

import re
from typing import NamedTuple

MOST_LOOKED_AT = 4096
_MAX_SHOWN = 60

_EXPORT = "export the network to ONNX from the program that has it, or with `holdfast model export`"
_DOWNLOAD = "probably a download that failed; get the file again"
_UNPACK = "unpack it, and give the model.onnx in it"


class _Format(NamedTuple):
    """How a file begins.

    Attributes:
        offset: Where the mark stands.
        mark: Its bytes, in small letters where it is text.
        words: What it is, and what to do.
    """

    offset: int
    mark: bytes
    words: str


_FORMATS = (
    _Format(
        0, b"version https://git-lfs.github.com/", "a Git LFS pointer, not the model; run `git lfs pull`"
    ),
    _Format(0, b"<!doctype html", f"an HTML page, {_DOWNLOAD}"),
    _Format(0, b"<html", f"an HTML page, {_DOWNLOAD}"),
    _Format(0, b"<?xml", f"an XML page, {_DOWNLOAD}"),
    _Format(4, b"TFL3", f"a TensorFlow Lite model; {_EXPORT}"),
    _Format(
        4, b"ORTM", "a graph in onnxruntime's own format (.ort); give the .onnx file that it was made of"
    ),
    _Format(0, b"\x89HDF\r\n\x1a\n", f"an HDF5 file, as Keras writes them; {_EXPORT}"),
    _Format(0, b"GGUF", f"a GGUF file; {_EXPORT}"),
    _Format(0, b"\x93NUMPY", f"a NumPy array; {_EXPORT}"),
    _Format(0, b"\x1f\x8b", f"a gzip archive; {_UNPACK}"),
    _Format(0, b"BZh", f"a bzip2 archive; {_UNPACK}"),
    _Format(0, b"\xfd7zXZ\0", f"an xz archive; {_UNPACK}"),
    _Format(0, b"\x28\xb5\x2f\xfd", f"a zstd archive; {_UNPACK}"),
    _Format(0, b"7z\xbc\xaf\x27\x1c", f"a 7z archive; {_UNPACK}"),
    _Format(257, b"ustar", f"a tar archive; {_UNPACK}"),
)

_ZIP = b"PK\x03\x04"
_ZIPPED = (
    (b"/data.pkl", f"a checkpoint of PyTorch, which is a zip archive; {_EXPORT}"),
    (b"model.weights.h5", f"a model of Keras, which is a zip archive; {_EXPORT}"),
    (b"config.json", f"a model of Keras, which is a zip archive; {_EXPORT}"),
)
"""A name of a file in the archive, and what the archive then is."""

_PICKLE = re.compile(rb"\x80[\x02-\x05][\x8a\x95}c(]")
"""Of a protocol from 2 on: what `torch.save` wrote before it wrote zip archives."""
_SAFETENSORS = re.compile(rb'.{6}\0\0\{\s*"', re.DOTALL)
"""The length of a header of JSON, and the header."""


def other_format(data: bytes) -> str | None:
    """Returns what a file is instead of an ONNX file, and what to do; None if that is not told.

    Args:
        data: The file.
    """
    head = data[:MOST_LOOKED_AT]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for offset, mark, words in _FORMATS:
        if head.startswith(mark, offset) or (offset == 0 and text[: len(mark)].lower() == mark):
            return words
    if head.startswith(_ZIP):
        return next((words for name, words in _ZIPPED if name in head), f"a zip archive; {_UNPACK}")
    if _PICKLE.match(head):
        return f"a pickle, as PyTorch writes checkpoints; {_EXPORT}"
    if _SAFETENSORS.match(head):
        return f"a safetensors file, which has weights and no network; {_EXPORT}"
    if _is_text(head):
        shown = " ".join(text[:_MAX_SHOWN].decode(errors="ignore").split())
        return f"text that begins {shown!r}; {_DOWNLOAD}"
    return None


def _is_text(head: bytes) -> bool:
    """Tells whether there are only characters that people read; an ONNX file has others from the start."""
    try:
        text = head[: 4 * _MAX_SHOWN].decode()
    except UnicodeDecodeError as error:
        if error.start < min(len(head), 4 * _MAX_SHOWN) - 3:  # not a character that was cut off
            return False
        text = head[: error.start].decode()
    return bool(text) and all(char.isprintable() or char in "\r\n\t" for char in text)
