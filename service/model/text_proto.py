"""Reads protobuf's text format without a schema: what `config.pbtxt` is written in. Pure.

A field's kind is not known without its schema, so every field has the list of what stands there: messages,
texts, numbers and words (of enums, true and false).
"""

import re
from typing import NamedTuple, TypeAlias

Word: TypeAlias = "str | int | float | bytes | Message"
Message: TypeAlias = dict[str, list[Word]]
"""Texts are bytes; words, as of enums, are str."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

_TOKEN = re.compile(
    r"""(?P<space>(?:\s|\#[^\n]*)+)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>-?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)[fF]?)
    |(?P<word>-?[A-Za-z_][A-Za-z0-9_./]*)
    |(?P<mark>[][{}<>:,;])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_ENDS = {"{": "}", "<": ">"}


class TextProtoError(Exception):
    """A text is not of this format; the message has the line."""


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def parse(text: str) -> Message:
    """Returns the fields of a message by name.

    Raises:
        TextProtoError: The text is not of this format.
    """
    if len(text) > MAX_BYTES:
        raise TextProtoError(f"it has {len(text)} characters, expected at most {MAX_BYTES}")
    return _Parser(_tokens(text)).message("", 0)


def _tokens(text: str) -> list[_Token]:
    tokens, at, line = [], 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise TextProtoError(
                f"line {line}: {text[at : at + 20].split(chr(10))[0]!r} is no field or value"
            )
        if found.lastgroup != "space":
            tokens.append(_Token(str(found.lastgroup), found[0], line))
        line += found[0].count("\n")
        at = found.end()
    return [*tokens, _Token("end", "", line)]


class _Parser:
    """Goes through the tokens once."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def message(self, end: str, depth: int) -> Message:
        """Returns the fields up to the mark that ends the message."""
        if depth > MAX_DEPTH:
            raise self._error(f"messages lie more than {MAX_DEPTH} deep")
        fields: Message = {}
        while not self._takes(end):
            name = self._next()
            if name.kind != "word":
                raise self._error(f"expected the name of a field, found {name.text!r}", name)
            values = fields.setdefault(name.text, [])
            if self._takes(":") or self._peek().text == "[":
                values += self._values(depth)
            else:
                values.append(self._inner(depth))
            if not self._takes(","):
                self._takes(";")
        return fields

    def _values(self, depth: int) -> list[Word]:
        if not self._takes("["):
            return [self._value(depth)]
        values: list[Word] = []
        while not self._takes("]"):
            values.append(self._value(depth))
            if not self._takes(",") and self._peek().text != "]":
                raise self._error("expected a comma or ]")
        return values

    def _value(self, depth: int) -> Word:
        token = self._peek()
        if token.text in _ENDS:
            return self._inner(depth)
        self._at += 1
        if token.kind == "text":
            parts = [_unescaped(token.text)]
            while self._peek().kind == "text":
                parts.append(_unescaped(self._next().text))
            return b"".join(parts)
        if token.kind == "number":
            return _number(token)
        if token.kind == "word":
            return token.text
        raise self._error("expected a value", token)

    def _inner(self, depth: int) -> Message:
        opening = self._next()
        if opening.text not in _ENDS:
            raise self._error("expected : or {", opening)
        return self.message(_ENDS[opening.text], depth + 1)

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._peek()
        if token.kind == "end":
            raise self._error("the text ends in the middle of a message", token)
        self._at += 1
        return token

    def _takes(self, text: str) -> bool:
        token = self._peek()
        is_it = token.text == text and token.kind in ("mark", "end")
        self._at += is_it and token.kind == "mark"
        return is_it

    def _error(self, what: str, token: _Token | None = None) -> TextProtoError:
        token = token or self._peek()
        return TextProtoError(f"line {token.line}: {what}")


def _number(token: _Token) -> int | float:
    text = token.text.rstrip("fF") if "x" not in token.text.lower() else token.text
    try:
        return int(text, 0)
    except ValueError:
        return float(text)


def _unescaped(quoted: str) -> bytes:
    def replaced(found: re.Match[bytes]) -> bytes:
        if found[1]:
            return bytes([int(found[1], 16)])
        if found[2]:
            return bytes([int(found[2], 8) & 255])
        return _ESCAPED.get(found[3], found[3])

    return _ESCAPE.sub(replaced, quoted[1:-1].encode())
