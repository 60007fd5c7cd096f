"""A tokenizer.json as it comes from a disk that is not trusted. The only place that imports `tokenizers`.

Served is what tokenises a stream piece by piece as it would the whole text (`service.model.pieces`). So its
splitter must divide a text wherever a piece ends, and nothing in it may look across that place:

    pre_tokenizer  ByteLevel, Whitespace, WhitespaceSplit, BertPreTokenizer, or a Sequence that has one of
                   them beside Digits, Punctuation and, behind it, Metaspace
    normalizer     none, NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, BertNormalizer, or a Sequence of
                   them
    model          BPE, Unigram, WordPiece, WordLevel

A text never contains the special entries, whatever it says. Of bytes that are no UTF-8 each is a piece of
text of its own where the entries are of bytes (ByteLevel), and U+FFFD elsewhere.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from service.model.pieces import MAX_PIECE_BYTES, cut

MAX_BYTES = 4 << 20
"""A vocabulary of 50,000 entries has 2 to 3 MiB."""

MAX_DEPTH = 8
REMEMBERED = 16384
"""Pieces whose ids are kept: words come again."""

MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
SPLITTERS = ("ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer")
_FURTHER_SPLITTERS = ("Digits", "Punctuation", "Metaspace")
NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer")

SEED = 2
DRAWN = 600
"""Entries in the text that a tokenizer is tried on."""
_BETWEEN = ("", "", " ", " ", "  ", "\n", "\t", ", ", "\u00a0", "\u3000 ")
_MOST_CONTINUED = 3
"""A piece that is cut for its length may be so much shorter, not to divide a character."""

Ids = tuple[int, ...]


class TokenizerError(Exception):
    """A tokenizer cannot be served; the message says why and what would be right."""


class Subwords:
    r"""Turns pieces of text into ids of a vocabulary.

    Args:
        data: The file.
        name: Of the file, for messages.
        size: Entries that the contract says it has.
        sha256: Hash that the contract says it has, hexadecimal.

    Attributes:
        texts: What each entry stands for; bytes that are no UTF-8 as `\xff`.
        written: The bytes that each entry writes, b"" for one that no text contains; empty where entries
            are no bytes, since what is between them is then not known.

    Raises:
        TokenizerError: It is not what the contract says, or cannot tokenise a stream.
    """

    def __init__(self, data: bytes, *, name: str, size: int, sha256: str) -> None:
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise TokenizerError(f"{name} has sha256 {found}, the contract says {sha256}")
        document = _read(data, name)
        self._is_byte_level = _has_byte_level(document["pre_tokenizer"])
        self._tokenizer = _load(data, name)
        self._check_entries(name, size)
        self._special = {entry.get("id") for entry in document.get("added_tokens") or ()}
        self.texts = tuple(self._text(entry) for entry in range(size))
        self.written = tuple(map(self._bytes_of, range(size))) if self._is_byte_level else ()
        self.encode = functools.lru_cache(REMEMBERED)(self._encode)
        self._check_pieces(name)

    def by_pieces(self, text: bytes) -> Ids:
        """Returns the ids of a text as a stream gives them; its end ends the last piece."""
        finished, rest = cut(b"", text)
        pieces = [*(found.piece for found in finished), rest]
        return tuple(entry for piece in pieces for entry in self.encode(piece))

    def _encode(self, piece: bytes) -> Ids:
        """Returns the ids of some bytes."""
        if not self._is_byte_level:
            return self._ids(piece.decode(errors="replace"))
        try:
            return self._ids(piece.decode())
        except UnicodeDecodeError:
            return tuple(entry for part in _divided(piece) for entry in self._of_part(part))

    def _ids(self, text: str) -> Ids:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _of_part(self, part: str | int) -> Ids:
        if isinstance(part, str):
            return self._ids(part)
        return tuple(token.id for token in self._tokenizer.model.tokenize(_LETTERS[part]))

    def sample_text(self) -> bytes:
        """Returns a text to try a model on, made of drawn entries; the same every time."""
        rng = np.random.default_rng(SEED)
        entries, between = (rng.integers(0, len(of), DRAWN) for of in (self.texts, _BETWEEN))
        pairs = zip(entries, between, strict=True)
        return "".join(self.texts[entry] + _BETWEEN[place] for entry, place in pairs).encode()

    def _check_pieces(self, name: str) -> None:
        """Holds ids of a stream against those of the whole text: what nobody thought of shows there."""
        lines = self.sample_text().split(b"\n")
        for line in lines:
            cuts, _ = cut(b"", line)
            is_cut_short = any(len(found.piece) >= MAX_PIECE_BYTES - _MOST_CONTINUED for found in cuts)
            if not is_cut_short and self._encode(line) != self.by_pieces(line):
                raise TokenizerError(
                    f"{name}: {line[:60]!r} has other ids in a stream than in one go; its splitter does "
                    "not divide a text before white space"
                )

    def _check_entries(self, name: str, size: int) -> None:
        entries = self._tokenizer.get_vocab(with_added_tokens=True)
        if len(entries) != size:
            raise TokenizerError(f"{name} has {len(entries)} entries, the contract says size = {size}")
        if sorted(entries.values()) != list(range(size)):
            raise TokenizerError(
                f"{name} has ids other than 0..{size - 1}; number its entries without gaps"
            )
        if self._is_byte_level and any(letter not in entries for letter in _LETTERS):
            raise TokenizerError(
                f"{name} lacks entries for some of the 256 bytes; train it with ByteLevel.alphabet() as "
                "its initial alphabet"
            )

    def _text(self, entry: int) -> str:
        word: str = self._tokenizer.id_to_token(entry)
        if not self._is_byte_level or any(letter not in _BYTES for letter in word):
            return word.replace("\u2581", " ")
        return self._bytes_of(entry).decode(errors="backslashreplace")

    def _bytes_of(self, entry: int) -> bytes:
        word: str = self._tokenizer.id_to_token(entry)
        is_special = entry in self._special or any(letter not in _BYTES for letter in word)
        return b"" if is_special else bytes(_BYTES[letter] for letter in word)


def _letters() -> list[str]:
    """Returns the letters in which entries of ByteLevel write bytes: themselves if they print."""
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in prints else next(others)) for byte in range(256)]


_LETTERS = _letters()
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}


def _divided(data: bytes) -> Iterator[str | int]:
    """Divides bytes into texts and bytes that belong to none."""
    while data:
        try:
            yield data.decode()
            return
        except UnicodeDecodeError as error:
            if error.start:
                yield data[: error.start].decode()
            yield from data[error.start : error.end]
            data = data[error.end :]


def _read(data: bytes, name: str) -> dict[str, Any]:
    """Reads the file as JSON and refuses what cannot tokenise a stream."""
    if len(data) > MAX_BYTES:
        raise TokenizerError(f"{name} has {len(data)} bytes, expected at most {MAX_BYTES}")
    try:
        document = json.loads(data)
    except (RecursionError, ValueError) as error:
        raise TokenizerError(f"{name} is not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise TokenizerError(f"{name} is not a tokenizer.json of the package tokenizers: it has no model")
    _check_model(document["model"], name)
    _check_splitter(document.get("pre_tokenizer"), name)
    for part in _flat(document.get("normalizer"), "normalizers", name):
        if part.get("type") not in NORMALIZERS:
            raise TokenizerError(
                f"{name}: the normalizer {_shown(part)} may look beyond a piece; served are "
                f"{', '.join(NORMALIZERS)}"
            )
    for entry in document.get("added_tokens") or ():
        if not isinstance(entry, dict) or not entry.get("special"):
            raise TokenizerError(
                f"{name}: the added token {str(entry)[:60]} is not special, so that it is found across "
                "pieces; make it part of the model's vocabulary"
            )
    return document


def _check_model(model: dict[str, Any], name: str) -> None:
    kind = model.get("type")
    if kind not in MODELS:
        raise TokenizerError(f"{name}: the model {_shown(model)} is not one of {', '.join(MODELS)}")
    if model.get("dropout"):
        raise TokenizerError(f"{name}: dropout makes its ids a matter of chance; set it to null")


def _check_splitter(splitter: Any, name: str) -> None:
    parts = _flat(splitter, "pretokenizers", name)
    kinds = [part.get("type") for part in parts]
    served = ", ".join((*SPLITTERS, *_FURTHER_SPLITTERS))
    for part, kind in zip(parts, kinds, strict=True):
        if kind not in (*SPLITTERS, *_FURTHER_SPLITTERS):
            raise TokenizerError(
                f"{name}: of the pre_tokenizer {_shown(part)} nothing says that it divides a text before "
                f"white space; served are {served}"
            )
        if kind == "ByteLevel" and part.get("add_prefix_space", True):
            raise TokenizerError(
                f"{name}: add_prefix_space would put a space before every piece; set it to false"
            )
        if kind == "Metaspace" and part.get("prepend_scheme") not in ("always", "never"):
            raise TokenizerError(
                f"{name}: Metaspace would begin the first piece otherwise than the next; set its "
                'prepend_scheme to "always" or "never"'
            )
    dividing = [_divides(part) for part in parts]
    if not any(dividing) or "Metaspace" in kinds[: dividing.index(True)]:
        raise TokenizerError(
            f"{name}: no pre_tokenizer divides the text itself before white space, so that a word has no "
            f"end in a stream; begin with one of {', '.join(SPLITTERS)}"
        )


def _divides(splitter: dict[str, Any]) -> bool:
    if splitter.get("type") == "ByteLevel":
        return splitter.get("use_regex", True) is True
    return splitter.get("type") in SPLITTERS


def _has_byte_level(splitter: Any) -> bool:
    return any(part.get("type") == "ByteLevel" for part in _flat(splitter, "pretokenizers", ""))


def _flat(part: Any, key: str, name: str, depth: int = 0) -> list[dict[str, Any]]:
    """Returns the parts of a normalizer or pre-tokenizer, sequences resolved."""
    if part is None:
        return []
    if not isinstance(part, dict) or depth > MAX_DEPTH:
        raise TokenizerError(f"{name}: {str(part)[:40]} is not a part of a tokenizer")
    if part.get("type") != "Sequence":
        return [part]
    inner = part.get(key)
    if not isinstance(inner, Sequence) or isinstance(inner, str):
        raise TokenizerError(f"{name}: a Sequence without {key}")
    return [found for entry in inner for found in _flat(entry, key, name, depth + 1)]


def _shown(part: dict[str, Any]) -> str:
    return str(part.get("type"))[:40]


class TokenizersMissingError(TokenizerError):
    """The package is not installed."""


def import_tokenizers() -> Any:
    """Imports the package, for one process once; returns it, or None if it is not installed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it would start threads, one per core
    try:
        import tokenizers
    except ImportError:
        return None
    return tokenizers


def _load(data: bytes, name: str) -> Any:
    package = import_tokenizers()
    if package is None:
        raise TokenizersMissingError(
            f"{name} needs the package tokenizers: pip install 'holdfast[tokenizer]'"
        )
    try:
        tokenizer = package.Tokenizer.from_str(data.decode())
    except Exception as error:  # noqa: BLE001 -- the package raises plain Exception
        raise TokenizerError(f"{name} cannot be loaded: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
