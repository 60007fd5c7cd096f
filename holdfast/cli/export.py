"""`holdfast model export`: makes a model of a network, or says in one line why it cannot be one."""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from holdfast.cli.calling import EXIT_CONFIGURATION, failed
from model_export.export_error import ExportError

_OF_BOTH = ("int8", "float16_state", "max_drift", "overwrite")
_OF_NETWORKS = (
    "role",
    "labels",
    "vocabulary",
    "context",
    "initial",
    "description",
    "feedback",
    "one_session",
    "one_token",
)


def main(arguments: Sequence[str]) -> int:
    """Exports one network.

    Returns:
        0, or 1 if the network is refused; argparse exits with 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    if (options.network is None) == (options.source is None):
        return failed("model export", "give either MODULE:FUNCTION or --from FILE", EXIT_CONFIGURATION)
    # what needs torch or onnx is imported here, so that --help needs neither
    try:
        made = _network(options) if options.source is None else _file_of(options)
    except ModuleNotFoundError as error:
        return failed(
            "model export", f"needs {error.name}: pip install 'holdfast[train]'", EXIT_CONFIGURATION
        )
    except ExportError as error:
        return failed("model export", error)
    print(_shown(made))
    for topic, text in made.get("facts", {}).items():
        print(f"{topic}: {text}")
    print(Path(options.out) / "model.onnx")
    return 0


def _network(options: argparse.Namespace) -> dict[str, Any]:
    from model_export.exporter import export_step

    module, example, given = _built(options.network)
    done = export_step(module, example, out=options.out, **{**given, **_given(options)})
    return done.contract


def _file_of(options: argparse.Namespace) -> dict[str, Any]:
    from model_export.from_file import export_file, read_constants
    from model_export.surgery.value import Refused

    unread = [name for name in _OF_NETWORKS if getattr(options, name) is not None]
    if unread:
        raise ExportError(
            f"--{unread[0].replace('_', '-')} is for networks of PyTorch, not for --from FILE"
        )
    try:
        constants = read_constants(options.constant)
        given = {name: getattr(options, name) for name in _OF_BOTH if getattr(options, name) is not None}
        return export_file(Path(options.source), Path(options.out), constants=constants, **given)
    except Refused as error:
        raise ExportError(f"{options.source}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "holdfast model export",
        description="Makes a model from a PyTorch network or a whole-sequence ONNX file: an ONNX graph of "
        "one step, and contract.toml. Before the graph is written, its outputs are compared with those of "
        "the original in a closed loop.",
    )
    parser.add_argument(
        "network",
        nargs="?",
        metavar="MODULE:FUNCTION",
        help="a function without arguments, in a module or a file (net.py:build): returns the network and "
        "its example (x, state), optionally with a dict of further arguments of model_export.export_step",
    )
    parser.add_argument(
        "--from", dest="source", metavar="FILE", help="a whole-sequence ONNX file instead of a network"
    )
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", help="folder of the version, as models/mine/1"
    )
    parser.add_argument(
        "--role",
        help="role of the output: logits, probs, log_probs, score, token_log_prob or raw (default: raw)",
    )
    parser.add_argument(
        "--labels", metavar="A,B,...", help="names of the classes, one for each value of the output"
    )
    parser.add_argument(
        "--vocabulary",
        metavar="bytes|N",
        help="size of the vocabulary (default: the rows of the network's only embedding)",
    )
    parser.add_argument(
        "--context", type=int, metavar="N", help="number of values of x that belong to previous tokens"
    )
    parser.add_argument(
        "--initial",
        type=float,
        metavar="N",
        help="initial value of the states (default: the example's state)",
    )
    parser.add_argument("--description", metavar="TEXT", help="description for people")
    parser.add_argument(
        "--feedback",
        metavar="OUTPUT",
        help="output that is the next input when the network runs on by itself",
    )
    parser.add_argument(
        "--one-session",
        action="store_const",
        const=True,
        help="the network takes one session per call: it has no batch axis",
    )
    parser.add_argument(
        "--one-token", action="store_const", const=True, help="x is one token: it has no time axis"
    )
    parser.add_argument(
        "--constant",
        action="append",
        default=[],
        metavar="INPUT=FILE.npy",
        help="with --from: the value of an input that is a weight",
    )
    for name, words in (
        ("int8", "store weights as int8, with a scale for each output channel"),
        ("float16-state", "store states as float16, which halves the record"),
        ("overwrite", "replace an existing model"),
    ):
        parser.add_argument(f"--{name}", action="store_const", const=True, help=words)
    parser.add_argument(
        "--max-drift",
        type=float,
        metavar="N",
        help="largest change of the outputs that --int8 and --float16-state may cause",
    )
    return parser


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `export_step` that were named."""
    vocabulary = options.vocabulary
    if vocabulary is not None and vocabulary.isdigit():
        vocabulary = int(vocabulary)
    given = {
        "role": options.role,
        "labels": options.labels.split(",") if options.labels else None,
        "vocabulary": vocabulary,
        "context": options.context,
        "initial": options.initial,
        "description": options.description,
        "feedback": options.feedback,
        "batched": False if options.one_session else None,
        "one_token": options.one_token,
        **{name: getattr(options, name) for name in _OF_BOTH},
    }
    return {name: value for name, value in given.items() if value is not None}


def _built(network: str) -> tuple[Any, Any, dict[str, Any]]:
    """Calls the function that is named.

    Returns:
        The network, its example, and further arguments.

    Raises:
        ExportError: There is none, or it does not return them.
    """
    built = _function(network)()
    if not isinstance(built, tuple) or len(built) not in (2, 3):
        raise ExportError(f"{network} returns {type(built).__name__}, expected (network, example)")
    options = built[2] if len(built) == 3 else {}
    return built[0], built[1], dict(options)


def _function(network: str) -> Callable[[], Any]:
    place, colon, name = network.rpartition(":")
    if not colon or not place or not name:
        raise ExportError(f"{network!r} names no function, expected MODULE:FUNCTION, as net.py:build")
    sys.path.insert(0, "")  # a module of the folder that the command is called in
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise ExportError(f"{place} needs {error.name}, which is not installed") from None
        raise ExportError(f"no module {place}; name it as for python -m, or its file") from None
    found = getattr(module, name, None)
    if not callable(found):
        raise ExportError(f"{place} has no function {name!r}")
    function: Callable[[], Any] = found
    return function


def _file(path: Path) -> Any:
    if not path.is_file():
        raise ExportError(f"no file {path}")
    sys.path.insert(0, str(path.parent))  # as python does for a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "bug: a file of Python without a loader"
    assert spec.loader is not None, "bug: a file of Python without a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _shown(contract: dict[str, Any]) -> str:
    """Returns what every tensor was taken for, one a line."""
    lines = []
    for topic in ("input", "session_input", "state", "output"):
        for entry in contract.get(topic, []):
            axes = ", ".join(map(str, entry["axes"]))
            lines.append(f"{topic:<13} {entry['name']:<16} ({axes})")
    return "\n".join(lines)
