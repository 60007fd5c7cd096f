"""English text: the docstrings of the running interpreter's own standard library. Standard library only.

A text is what the docstrings of one file say, in the order in which they stand there. Files are taken and
split into training and held-out as `corpus` does it.
"""

import ast
import warnings
from collections.abc import Iterable
from pathlib import Path

from model_export.corpus import Corpus, SourceFile, digest, load_corpus

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def load_docstrings(folder: Path | None = None) -> Corpus:
    """Reads the corpus: one text per file that has docstrings, under the file's path.

    Args:
        folder: Where to look; default is the standard library of the running interpreter.

    Raises:
        FileNotFoundError: No source file lies there.
    """
    sources = load_corpus(folder)
    training, held_out = _texts(sources.training), _texts(sources.held_out)
    return Corpus(training, held_out, digest(sorted((*training, *held_out))))


def held_out_docstrings() -> tuple[SourceFile, ...]:
    """Returns the texts that no network has seen; see `load_docstrings`."""
    return _texts(load_corpus().held_out)


def _texts(files: Iterable[SourceFile]) -> tuple[SourceFile, ...]:
    texts = (SourceFile(file.path, _docstrings(file.data)) for file in files)
    return tuple(text for text in texts if text.data)


def _docstrings(source: bytes) -> bytes:
    """Returns the docstrings of a source file with an empty line between them; b"" if it is none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return b""
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    found = (ast.get_docstring(node) for node in nodes)
    return "\n\n".join(text for text in found if text).encode(errors="replace")
