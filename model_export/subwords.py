"""Subwords for a corpus: byte pairs, merged as its training texts have them most often.

The same texts give the same tokenizer, byte for byte.
"""

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from model_export.corpus import SourceFile

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # read when threads are about to be started
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 4000
START = 0
"""Id that stands before every text; no text has it."""

_START_TEXT = "<|start|>"


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
