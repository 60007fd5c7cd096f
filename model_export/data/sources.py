"""Files in eight languages that are on every machine which can train this project, as bytes with a label.

| language | from |
|---|---|
| python | the standard library, without tests |
| c++ | headers of numpy and of torch |
| cython | numpy |
| cmake | torch |
| protobuf | onnx, googleapis-common-protos, grpcio-tools |
| json | the schemas of check-jsonschema |
| yaml | the same schemas, written as YAML |
| rst | the topics of `help()`, in the standard library |

Versions are those of `constraints.txt`; a digest over all bytes says whether they were the same. A server
has neither torch nor the tools: it finds python, c++, cython, protobuf and rst, enough for the demo.
"""

import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

from model_export.corpus import SourceFile, digest, is_held_out, load_corpus

LANGUAGES = ("python", "c++", "cython", "cmake", "protobuf", "json", "yaml", "rst")

MOST_FILE_BYTES = 64 << 10
"""Of a file its first so many bytes are taken, so that no schema of megabytes outweighs the others."""

_MOST_REWRITTEN_BYTES = 300_000
"""Longer schemas are not written as YAML: it would take a minute for bytes that are not read."""

_HEADERS = ("*.h", "*.hpp")
_FOLDERS: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "c++": (("numpy", "_core/include", _HEADERS), ("torch", "include/c10", _HEADERS)),
    "cython": (("numpy", "", ("*.pyx", "*.pxd")),),
    "cmake": (("torch", "share/cmake", ("*.cmake",)),),
    "protobuf": (
        ("onnx", "", ("*.proto",)),
        ("google", "", ("*.proto",)),
        ("grpc_tools", "", ("*.proto",)),
    ),
    "json": (("check_jsonschema", "builtin_schemas", ("*.json",)),),
}
"""Language -> package, folder in it, names."""


class Sources(NamedTuple):
    """The files, split by file.

    Attributes:
        training: By language, files that the network learns from.
        held_out: By language, files that it never sees.
        digest: sha256 over paths and bytes of all files, hexadecimal.
    """

    training: dict[str, tuple[SourceFile, ...]]
    held_out: dict[str, tuple[SourceFile, ...]]
    digest: str


def held_out_files(language: str) -> tuple[SourceFile, ...]:
    """Returns the files of one language that the network never saw; none if this machine has not any."""
    return tuple(file for file in _first_bytes(_files(language)) if _is_held_out(file))


def load_sources() -> Sources:
    """Reads what this machine has; a language that it has not is missing from the split."""
    found = {language: tuple(_first_bytes(_files(language))) for language in LANGUAGES}
    everything = [file for language in LANGUAGES for file in found[language]]
    return Sources(
        {name: tuple(file for file in files if not _is_held_out(file)) for name, files in found.items()},
        {name: tuple(file for file in files if _is_held_out(file)) for name, files in found.items()},
        digest(everything),
    )


def _is_held_out(file: SourceFile) -> bool:
    """One in 16 of the standard library, as for the other networks; of the fewer others one in 4."""
    if file.path.startswith("python/"):
        return is_held_out(file.path.removeprefix("python/"))
    return digest([SourceFile(file.path.partition("/")[2], b"")])[0] in "0123"


def _first_bytes(files: Iterable[SourceFile]) -> Iterator[SourceFile]:
    for file in files:
        yield SourceFile(file.path, file.data[:MOST_FILE_BYTES])


def _files(language: str) -> Iterator[SourceFile]:
    if language == "python":
        corpus = load_corpus()
        for file in sorted((*corpus.training, *corpus.held_out)):
            yield SourceFile(f"python/{file.path}", file.data)
    elif language == "rst":
        for topic, text in sorted(topics.items()):
            yield SourceFile(f"rst/{topic}", text.encode())
    elif language == "yaml":
        yield from as_yaml(_files("json"))
    else:
        for package, folder, patterns in _FOLDERS[language]:
            yield from _in_package(language, package, folder, patterns)


def _in_package(language: str, package: str, folder: str, patterns: Iterable[str]) -> Iterator[SourceFile]:
    spec = importlib.util.find_spec(package)
    for place in sorted(spec.submodule_search_locations or ()) if spec is not None else ():
        root = Path(place) / folder
        for path in sorted(path for pattern in patterns for path in root.rglob(pattern)):
            data = path.read_bytes()
            yield SourceFile(f"{language}/{package}/{path.relative_to(root).as_posix()}", data)


def as_yaml(files: Iterable[SourceFile]) -> Iterator[SourceFile]:
    """Writes JSON files as YAML; without PyYAML (a server has none) there are none."""
    if importlib.util.find_spec("yaml") is None:
        return
    import yaml

    for file in files:
        if len(file.data) > _MOST_REWRITTEN_BYTES:
            continue
        text = yaml.safe_dump(json.loads(file.data), sort_keys=False, allow_unicode=True)
        yield SourceFile(f"yaml/{file.path.partition('/')[2]}", text.encode())
