"""English text: the docstrings of the running interpreter's own standard library, and subwords for it.

A text is what the docstrings of one file say, in the order in which they stand there. Files are taken and
split into training and held-out as `corpus` does it. The subwords are byte pairs, merged as the training
texts have them most often; the same texts give the same tokenizer, byte for byte.
"""

import ast
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.corpus import Corpus, SourceFile, digest, is_held_out, load_corpus

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read when threads are about to be started
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 4000
START = 0
"""Id that stands before every text; no text has it."""

_START_TEXT = "<|start|>"
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def load_docstrings(folder: Path | None = None) -> Corpus:
    """Reads the corpus: one text per file that has docstrings, under the file's path.

    Args:
        folder: Where to look; default is the standard library of the running interpreter.

    Raises:
        FileNotFoundError: No source file lies there.
    """
    sources = load_corpus(folder)
    texts = [
        SourceFile(file.path, _docstrings(file.data)) for file in (*sources.training, *sources.held_out)
    ]
    texts = sorted(file for file in texts if file.data)
    return Corpus(
        training=tuple(file for file in texts if not is_held_out(file.path)),
        held_out=tuple(file for file in texts if is_held_out(file.path)),
        digest=digest(texts),
    )


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


def train_tokenizer(texts: Iterable[SourceFile], size: int = VOCABULARY_SIZE) -> str:
    """Returns `tokenizer.json` with so many entries, learnt from texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[_START_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((file.data.decode() for file in texts), trainer)
    return str(tokenizer.to_str())


def encode(tokenizer: str, texts: Iterable[SourceFile]) -> NDArray[np.int64]:
    """Returns the ids of texts one after the other, each with `START` before it."""
    loaded = Tokenizer.from_str(tokenizer)
    loaded.encode_special_tokens = True  # a text that mentions the start does not contain it
    rows = [[START, *loaded.encode(file.data.decode(), add_special_tokens=False).ids] for file in texts]
    return np.concatenate([np.array(row, np.int64) for row in rows])
