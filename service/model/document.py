"""contract.toml, and the metadata of an ONNX file, as one document: nested dictionaries. Pure.

    contract_version  1; may be left out
    description       for people
    rows_per_run      most rows, and
    tokens_per_run    most tokens of a row, that a run of the graph may have; absent: any number
    feedback          name of the output that is the next input in a generation
    [[input]]         name, axes, kind, dtype, token, context, size, units, description
    [[state]]         name, input, output, axes, dtype, initial, units, description
    [[output]]        name, axes, dtype, role, labels, switch, units, description
    [[session_input]] name, axes, dtype, initial, units, description
    [constants]       graph input = value
    [vocabulary]      kind, size; file, sha256, start of the kind "tokenizer"
    [facts]           for people, by topic

In `metadata_props` each topic is a JSON text under `holdfast.`: `holdfast.input`, `holdfast.states`,
`holdfast.outputs`, `holdfast.vocabulary` and so on; any other topic there is a fact. They may say `shape`
(without time and batch axis), `batch_axis` and `time_axis` in place of `axes`, and `apart`, a list of
`rows` and `tokens`, in place of a limit of 1.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Collection, Mapping
from typing import Any

from service.common.names import control_character
from service.model.apart import PARTS
from service.model.contract import ContractError

PREFIX = "holdfast."
VERSION = "1"
MAX_NAME_CHARS = 256
MAX_TEXT_BYTES = 64 << 10
"""Every list of models has these texts. A contract of a hundred states has 12 KiB."""
MAX_EXPANDED = 1000

Document = dict[str, Any]

_FOR_PEOPLE = {"units", "description"}
TABLES: dict[str, set[str]] = {
    "input": {"name", "axes", "kind", "dtype", "token", "context", "size"} | _FOR_PEOPLE,
    "state": {"name", "input", "output", "axes", "dtype", "initial"} | _FOR_PEOPLE,
    "output": {"name", "axes", "dtype", "role", "labels", "switch"} | _FOR_PEOPLE,
    "session_input": {"name", "axes", "dtype", "initial"} | _FOR_PEOPLE,
    "vocabulary": {"kind", "size", "file", "sha256", "start"},
}
"""Keys of each table."""
LISTS = ("input", "state", "output", "session_input")
"""Tables of which there may be several."""
_TOP = {
    "contract_version",
    "description",
    "rows_per_run",
    "tokens_per_run",
    "feedback",
    "constants",
    "facts",
    *TABLES,
}
_PLURALS = {"states": "state", "outputs": "output", "inputs": "input", "session_inputs": "session_input"}
_PLAIN_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,100}"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def from_toml(data: bytes) -> Document:
    """Reads contract.toml.

    Raises:
        ContractError: It is too long, no TOML, or has a key that is not known.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise ContractError(f"contract.toml has {len(data)} bytes, expected at most {MAX_TEXT_BYTES}")
    try:
        document = tomllib.loads(data.decode().removeprefix("\ufeff"))  # as some editors begin a file
    except (RecursionError, ValueError) as error:  # decoding raises a ValueError too
        raise ContractError(f"contract.toml cannot be read: {error}") from None
    return checked(document, "contract.toml")


def from_metadata(metadata: Mapping[str, str]) -> Document | None:
    """Reads the topics of a file's `metadata_props`; None if there are none.

    Raises:
        ContractError: They are too long, or malformed.
    """
    topics = {key.removeprefix(PREFIX): text for key, text in metadata.items() if key.startswith(PREFIX)}
    if not topics:
        return None
    text_bytes = metadata_bytes(metadata)
    if text_bytes > MAX_TEXT_BYTES:
        raise ContractError(
            f"its metadata under {PREFIX} has {text_bytes} bytes, expected at most {MAX_TEXT_BYTES}; "
            "keep long facts elsewhere"
        )
    try:
        document = _of_topics(topics)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ContractError(f"metadata cannot be read: {type(error).__name__}: {error}") from None
    return checked(document, "metadata")


def metadata_bytes(metadata: Mapping[str, str]) -> int:
    """Returns the size of the topics of a file's `metadata_props`, keys included."""
    texts = (key + text for key, text in metadata.items() if key.startswith(PREFIX))
    return sum(len(text.encode(errors="replace")) for text in texts)


def _of_topics(topics: Mapping[str, str]) -> Document:
    document: Document = {"facts": {}}
    for key, text in sorted(topics.items()):
        name = _PLURALS.get(key, key)
        if key == "contract_version":
            document[key] = text
        elif key == "apart":
            document |= _limits(json.loads(text))
        elif name in _TOP - {"facts", "description"}:
            document[name] = json.loads(text)
        else:
            document["facts"][key] = text
    for name in ("input", "state", "output"):
        entries = document.get(name)
        if entries is not None:
            entries = [entries] if isinstance(entries, dict) else list(entries)
            document[name] = [dict(entry) for entry in entries]
    leading = ["batch"]
    for entry in document.get("input", ()):
        entry["axes"] = entry.get("axes") or _input_axes(entry)
        leading = [axis for axis in entry["axes"] if axis in ("time", "batch")]
    for entry in document.get("state", ()):
        entry["axes"] = entry.get("axes") or _state_axes(entry)
    for entry in document.get("output", ()):
        entry["axes"] = entry.get("axes") or [*leading, *_extents(entry["shape"])]
    for name, keys in TABLES.items():
        for entry in document.get(name, ()) if name in LISTS else ():
            for old in {"shape", "batch_axis", "time_axis", "width"} & entry.keys() - keys:
                del entry[old]
            if entry.get("initial") == "zeros":
                entry["initial"] = 0
    return document


def _limits(parts: Any) -> dict[str, int]:
    if not isinstance(parts, list) or not set(map(str, parts)) <= set(PARTS):
        raise TypeError(f"apart is {parts!r}, expected a list of {' and '.join(PARTS)}")
    return {f"{part}_per_run": 1 for part in parts}


def _input_axes(entry: Mapping[str, Any]) -> list[Any]:
    has_time_axis = entry.get("time_axis", False)
    if not isinstance(has_time_axis, bool):
        raise TypeError(f"time_axis is {has_time_axis!r}, expected true or false")
    width = _extents([entry.get("width", 1)])
    return [*(["time"] if has_time_axis else []), "batch", *(width if entry["kind"] == "features" else [])]


def _state_axes(entry: Mapping[str, Any]) -> list[Any]:
    shape, place = _extents(entry["shape"]), int(entry.get("batch_axis", 0))
    if not 0 <= place <= len(shape):
        raise ValueError(f"state {entry.get('name')!r}: batch_axis {place} is out of range")
    return [*shape[:place], "batch", *shape[place:]]


def _extents(shape: Any) -> list[int]:
    return [int(extent) for extent in shape]


def checked(document: Document, source: str) -> Document:
    """Checks keys and types of the tables, and writes out the patterns of states.

    Args:
        document: As parsed.
        source: Where it stands, for messages.

    Returns:
        The same with a list for every table of which there may be several.

    Raises:
        ContractError: A key is not known, or a table is none.
    """
    _check_keys(document, _TOP, source)
    version = document.get("contract_version", 1)
    if str(version) != VERSION:
        raise ContractError(f"{source}: contract_version is {version!r}, this server reads {VERSION!r}")
    written = dict(document)
    for name in LISTS:
        if name not in document:
            continue
        entries = [document[name]] if isinstance(document[name], dict) else document[name]
        if not isinstance(entries, list):
            raise ContractError(f"{source}: {name} is {_short(entries)}, expected a table [[{name}]]")
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, dict):
                raise ContractError(
                    f"{source}: {name} {number} is {_short(entry)}, expected a table [[{name}]]"
                )
            _check_keys(entry, TABLES[name], f"{source}: {name} {number}")
        written[name] = [one for entry in entries for one in _expanded(entry, f"{source}: {name}")]
    for name in ("vocabulary", "constants", "facts"):
        table = document.get(name, {})
        if not isinstance(table, dict):
            raise ContractError(f"{source}: {name} is {_short(table)}, expected a table [{name}]")
    _check_keys(document.get("vocabulary", {}), TABLES["vocabulary"], f"{source}: vocabulary")
    return written


def _check_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        check_known(key, known, where)


def check_known(name: str, known: Collection[str], where: str) -> None:
    """Checks that a name is a known one.

    Raises:
        ContractError: It is not; the message has the nearest that is.
    """
    if name not in known:
        nearest = difflib.get_close_matches(name, sorted(known), 1)
        advice = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(sorted(known))}"
        raise ContractError(f"{where}: {_short(name)} is not known; {advice}")


def _expanded(entry: Document, where: str) -> list[Document]:
    """Writes out `{0..3}` in the texts of an entry, all of them in step."""
    ranges = {
        match.groups()
        for text in entry.values()
        if isinstance(text, str)
        for match in _RANGE.finditer(text)
    }
    if not ranges:
        return [entry]
    if len(ranges) > 1:
        raise ContractError(f"{where}: its patterns have different ranges, expected the same in each")
    first, last = map(int, ranges.pop())
    if not first <= last < first + MAX_EXPANDED:
        raise ContractError(f"{where}: the pattern {{{first}..{last}}} matches no, or too many, tensors")
    return [
        {
            key: _RANGE.sub(str(number), value) if isinstance(value, str) else value
            for key, value in entry.items()
        }
        for number in range(first, last + 1)
    ]


def files_named(document: Document) -> list[str]:
    """Returns the names of the files that a document needs beside it, each once.

    Raises:
        ContractError: One of them is more than a plain name.
    """
    values = [document.get("constants", {}).get(name) for name in document.get("constants", {})]
    values += [
        entry.get("initial") for name in ("state", "session_input") for entry in document.get(name, ())
    ]
    names = dict.fromkeys(value for value in values if isinstance(value, str))
    for name in names:
        if not re.fullmatch(_PLAIN_NAME + r"\.npy", name):
            raise ContractError(
                f"contract.toml: {_short(name)} is not the name of an .npy file beside contract.toml: "
                "expected letters, digits and . _ -"
            )
    return [*names, *_tokenizer_named(document.get("vocabulary", {}))]


def _tokenizer_named(vocabulary: Document) -> list[str]:
    name = vocabulary.get("file")
    if name is None:
        return []
    if not isinstance(name, str) or not re.fullmatch(_PLAIN_NAME + r"\.json", name):
        raise ContractError(
            f"contract.toml: vocabulary: {_short(name)} is not the name of a .json file beside "
            "contract.toml: expected letters, digits and . _ -"
        )
    return [name]


def name_of(value: Any, where: str) -> str:
    """Returns a name.

    Raises:
        ContractError: It is none.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME_CHARS or control_character(value):
        raise ContractError(
            f"{where} is {_short(value)}, which is not a valid name: expected 1..{MAX_NAME_CHARS} "
            "characters, none a control"
        )
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
