"""`holdfast model inspect`, `check` and `add`: model files, without a server."""

import argparse
import json
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from service.common.names import without_controls
from service.model.adding import place_of, put
from service.model.bundle import Bundle, pack, unpack
from service.model.contract import ContractError
from service.model.contract_text import describe
from service.model.document import files_named, from_toml
from service.model.files import (
    MODEL_FILE,
    ModelFileError,
    fingerprint_of,
    list_files,
    read_file,
    read_model,
)
from service.model.inspection import Inspection, inspect_completed, inspect_model

EXIT_REFUSED = 1
EXIT_CONFIGURATION = 2
_MOST_OPERATORS, _MOST_TENSORS = 12, 40


def main(arguments: list[str]) -> int:
    """Runs one of the subcommands.

    Returns:
        0, 1 if a file is refused, or 2 without what a server needs; argparse exits with 2 as well.
    """
    options = _parser().parse_args(arguments)
    if find_spec("onnxruntime") is None:  # the process that looks at a file would end without a word
        print("holdfast model needs onnxruntime: pip install 'holdfast[server]'", file=sys.stderr)
        return EXIT_CONFIGURATION
    try:
        code: int = options.run(options)
    except (ModelFileError, OSError) as error:
        print(f"holdfast model: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_REFUSED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "holdfast model", description="Inspects, checks and adds model files, without a server."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="prints a description of a file, and a contract.toml for it",
        description="Prints inputs, outputs, operators, size and run times of a model file as comments, "
        "then a contract.toml. A contract that is not complete yet has questions (# ?) to answer.",
    )
    inspect.set_defaults(run=_inspect)
    check = commands.add_parser(
        "check",
        help="reports for every model file below a folder whether a server would serve it",
        description="Checks model files in a confined process, as a server does before it loads them: "
        "their content, their contracts, and a trial run. The exit code is 1 if a file is refused.",
    )
    check.set_defaults(run=_check)
    check.add_argument("--json", action="store_true", help="prints one JSON object per file")
    add = commands.add_parser(
        "add",
        help="checks a file and adds it, with its contract, to the folder of models",
        description="Checks a model file and its contract, if it needs one, and adds both "
        "to DIR/NAME/VERSION atomically. If it is refused, nothing is added, and a contract is proposed.",
    )
    add.set_defaults(run=_add)
    add.add_argument("--name", required=True, help="name by which clients ask for the model")
    add.add_argument("--version", type=int, help="its version, >= 1 (default: the one after the highest)")
    add.add_argument("--models", type=Path, default=Path("models"), metavar="DIR", help="folder of models")
    add.add_argument("--contract", type=Path, metavar="FILE", help="its contract.toml (default: beside it)")
    add.add_argument(
        "--proposal",
        type=Path,
        metavar="FILE",
        help="file for a proposed contract (default: it is printed)",
    )
    for command in (inspect, add):
        command.add_argument("file", type=Path, metavar="FILE", help="an ONNX file")
    check.add_argument("path", type=Path, metavar="PATH", help="an ONNX file, or a folder of them")
    return parser


def _inspect(options: argparse.Namespace) -> int:
    given = read_model(options.file)
    data, found = inspect_completed(options.file, given)
    for line in _facts(options.file, len(unpack(data).graph), found, needs_contract=data is not given):
        print(f"# {_shown(line)}".rstrip())
    print(f"\n{found.contract}", end="")
    return EXIT_REFUSED if found.declared is None else 0


def _facts(path: Path, size_bytes: int, found: Inspection, *, needs_contract: bool) -> Iterator[str]:
    yield f"{path.name}: {size_bytes:,} bytes"
    if found.declared is not None:
        for title, tensors in (("inputs", found.declared.inputs), ("outputs", found.declared.outputs)):
            width = max(map(len, tensors), default=0)
            for number, (name, tensor) in enumerate(tensors.items()):
                if number == _MOST_TENSORS:
                    yield f"{'':<10} and {len(tensors) - number} more"
                    break
                yield f"{'' if number else title:<10} {name:<{min(width, 40)}}  {describe(tensor)}"
    if found.operators:
        ranked = sorted(found.operators.items(), key=lambda item: (-item[1], item[0]))
        more = f", and {len(ranked) - _MOST_OPERATORS} more" if len(ranked) > _MOST_OPERATORS else ""
        shown = ", ".join(f"{name} {count}" for name, count in ranked[:_MOST_OPERATORS])
        yield f"{'operators':<10} {sum(found.operators.values())} nodes: {shown}{more}"
    if found.refusal:
        yield f"{'verdict':<10} not served as it is: {found.refusal}"
        return
    yield f"{'state':<10} {found.state_bytes:,} bytes a session"
    yield f"{'run time':<10} {_times(found)}"
    how = "served with this contract" if needs_contract else "served as it is"
    yield f"{'verdict':<10} {how}; {_differences(found)}"


def _check(options: argparse.Namespace) -> int:
    paths, refused = _models_of(options.path)
    for error in refused:
        _tell(options, error.path, error.reason, None)
    is_refused = bool(refused)
    first: dict[bytes, Path] = {}
    for path in paths:
        found = None
        try:
            data = read_model(path)
            found = inspect_model(path, data)
            reason = found.refusal or _copied(path, first.setdefault(fingerprint_of(data), path))
        except ModelFileError as error:
            reason = error.reason if error.path == path else f"{error.path.name}: {error.reason}"
        _tell(options, path, reason, found)
        is_refused |= bool(reason)
    if not paths and not refused:
        raise ModelFileError(options.path, "no .onnx file in this folder")
    return EXIT_REFUSED if is_refused else 0


def _copied(path: Path, first: Path) -> str:
    """Returns why a server refuses a file that it has already; sessions are kept by fingerprint."""
    is_served = all(one.name == MODEL_FILE for one in (path, first))
    return f"it is a copy of {first}" if is_served and path != first else ""


def _models_of(path: Path) -> tuple[list[Path], list[ModelFileError]]:
    """Returns the model files that are meant, and what is wrong with the names of others."""
    if not path.is_dir():
        return [path], []
    refused = list_files(path)[1]
    wrong = {error.path for error in refused}
    found = {*path.rglob("*.onnx"), *path.glob(f"*/*/{MODEL_FILE}")}  # the latter through links as well
    return sorted(found - wrong), refused


def _tell(options: argparse.Namespace, path: Path, reason: str, found: Inspection | None) -> None:
    if options.json:
        facts: dict[str, Any] = {"path": str(path), "served": not reason, "reason": reason}
        if found is not None and not reason:
            facts |= {
                "state_bytes": found.state_bytes,
                "step_s": dict(found.step_s),
                "differences": dict(found.differences),
            }
        print(json.dumps(facts))
    elif reason or found is None:
        print(f"refused  {_shown(str(path))}: {_shown(reason)}")
    else:
        told = f"{found.state_bytes:,} bytes a session; {_times(found)}; {_differences(found)}"
        print(f"served   {_shown(str(path))}: {told}")
    sys.stdout.flush()


def _add(options: argparse.Namespace) -> int:
    place = place_of(options.models, options.name, options.version, options.file)
    data, found = inspect_completed(options.file, pack(_bundle(options)))
    if found.refusal:
        _propose(options, found)
        return EXIT_REFUSED
    put(unpack(data), place)
    print(f"added {place}: {found.state_bytes:,} bytes a session; {_times(found)}; {_differences(found)}")
    return 0


def _bundle(options: argparse.Namespace) -> Bundle:
    if options.contract is None:
        return unpack(read_model(options.file))
    text = read_file(options.contract)
    try:
        names = files_named(from_toml(text))
    except ContractError as error:
        raise ModelFileError(options.contract, str(error)) from None
    files = {name: read_file(options.contract.with_name(name)) for name in names}
    return Bundle(read_file(options.file), text, files)


def _propose(options: argparse.Namespace, found: Inspection) -> None:
    print(f"holdfast model add: {_shown(str(options.file))}: {_shown(found.refusal)}", file=sys.stderr)
    if not found.contract:
        return
    if options.proposal is None:
        print(found.contract, end="")
        how = "complete the contract above, save it"
    else:
        options.proposal.write_text(found.contract)
        how = f"complete {options.proposal}"
    print(f"holdfast model add: {how}, and give it as --contract", file=sys.stderr)


def _times(found: Inspection) -> str:
    parts = [f"{seconds * 1000:.3g} ms for {count}" for count, seconds in found.step_s.items()]
    return f"a step takes {', '.join(parts)} rows"


def _differences(found: Inspection) -> str:
    largest = max(found.differences.values(), default=0.0)
    return f"batches and chunks change outputs by {largest:.1g} at most"


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in without_controls(text))
