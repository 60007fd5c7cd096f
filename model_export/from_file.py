"""`holdfast model export --from FILE --out FOLDER`: a model of a whole-sequence file, without torch.

Also as `python -m model_export.from_file FILE --out FOLDER`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from model_export.drift import MAX_DRIFT, check_drift
from model_export.from_sequence import to_step_graph
from model_export.quantise import quantise
from model_export.surgery.preparing import one_line, parsed
from model_export.surgery.value import Refused
from model_export.written import write_model
from service.model.bundle import CONTRACT_FILE
from service.model.contract import ContractError, GraphTensor
from service.model.document import from_metadata, from_toml
from service.model.files import MODEL_FILE
from service.model.pairing import complete

MAX_BYTES = 2 << 30
"""Protocol buffers are no longer."""


def export_file(
    source: Path,
    out: Path,
    *,
    constants: Mapping[str, NDArray[Any]] | None = None,
    int8: bool = False,
    float16_state: bool = False,
    max_drift: float = MAX_DRIFT,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Makes a model of a whole-sequence ONNX file, or a smaller one of a step graph.

    Args:
        source: The file; weights in a second file beside it are read too. A folder is that of a model.
        out: Folder of the version, as `models/mine/1`.
        constants: Graph input -> value, for weights that the file takes as inputs.
        int8: Keeps weights as int8 with a scale per output channel.
        float16_state: Keeps states as float16.
        max_drift: See `check_drift`.
        overwrite: Writes over a model that is there.

    Returns:
        The contract, as written.

    Raises:
        Refused: One line with the reason and the way out; nothing is written.
    """
    whole = as_step_graph(source) or to_step_graph(load(source), constants)
    if not int8 and not float16_state:
        write_model(*whole, out, overwrite=overwrite)
        return whole[1]
    model, document = quantise(*whole, int8=int8, float16_state=float16_state)
    drift = check_drift(whole, (model, document), max_drift=max_drift)
    document["facts"] = {**document.get("facts", {}), "drift": drift.in_words()}
    write_model(model, document, out, overwrite=overwrite)
    drift.write(out)
    return document


def as_step_graph(source: Path) -> tuple[onnx.ModelProto, dict[str, Any]] | None:
    """Reads a step graph with its contract; None if the file has none, neither inside nor beside it.

    Raises:
        Refused: The contract does not say all there is to say, and the graph does not either.
    """
    file = source / MODEL_FILE if source.is_dir() else source
    beside = file.with_name(CONTRACT_FILE)
    model = load(file)
    try:
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        said = from_toml(beside.read_bytes()) if beside.exists() else from_metadata(metadata)
        if said is None:
            return None
        document = complete(said, *(_declared(infos) for infos in _sides(model)))
    except (ContractError, OSError) as error:
        raise Refused(f"its contract cannot be read: {one_line(error)}") from None
    for entry in document["state"]:
        if isinstance(entry.get("initial"), str):
            entry["initial"] = np.load(file.with_name(entry["initial"]), allow_pickle=False).tolist()
    return model, document


def _sides(model: onnx.ModelProto) -> tuple[list[onnx.ValueInfoProto], ...]:
    """Returns inputs, outputs, and inputs that have a default."""
    held = {weight.name for weight in model.graph.initializer}
    free = [info for info in model.graph.input if info.name not in held]
    return free, list(model.graph.output), [info for info in model.graph.input if info.name in held]


def _declared(infos: Sequence[onnx.ValueInfoProto]) -> dict[str, GraphTensor]:
    tensors = {}
    for info in infos:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type).name
        dims = info.type.tensor_type.shape.dim
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims)
        tensors[info.name] = GraphTensor(dtype, shape)
    return tensors


def load(source: Path) -> onnx.ModelProto:
    """Reads an ONNX file with the weights that lie beside it.

    Raises:
        Refused: It cannot be read, or is no ONNX graph.
    """
    try:
        if source.stat().st_size >= MAX_BYTES:
            raise Refused(f"{source} has more than {MAX_BYTES >> 30} GiB, which no ONNX file can have")
        model = parsed(source.read_bytes())
        onnx.external_data_helper.load_external_data_for_model(model, str(source.parent))
    except OSError as error:
        raise Refused(f"{source} cannot be read: {error.strerror or error}") from None
    except (onnx.checker.ValidationError, ValueError, DecodeError) as error:
        raise Refused(
            f"the weights that {source} keeps in a second file cannot be read: {one_line(error)}"
        ) from None
    return model


def read_constants(entries: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Reads `INPUT=FILE.npy` entries.

    Raises:
        Refused: One of them is none, or its file cannot be read.
    """
    found = {}
    for entry in entries:
        name, equals, file = entry.partition("=")
        if not name or not equals:
            raise Refused(f"--constant {entry!r}: expected INPUT=FILE.npy")
        try:
            found[name] = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise Refused(f"--constant {entry!r}: {one_line(error)}") from None
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports one file.

    Returns:
        0, or 1 if it is refused.
    """
    parser = argparse.ArgumentParser("python -m model_export.from_file", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a whole-sequence ONNX graph")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder of the version, as models/mine/1"
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        document = export_file(options.file, options.out, **options_given(options))
    except Refused as error:
        print(f"{options.file}: {error}", file=sys.stderr)
        return 1
    for topic, text in document["facts"].items():
        print(f"{topic}: {text}")
    print(options.out / MODEL_FILE)
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that this way of exporting has, beside --out and --overwrite."""
    parser.add_argument(
        "--constant",
        action="append",
        default=[],
        metavar="INPUT=FILE.npy",
        help="the value of an input that is a weight",
    )
    parser.add_argument(
        "--int8", action="store_true", help="store weights as int8, a scale per output channel"
    )
    parser.add_argument(
        "--float16-state", action="store_true", help="store states as float16, which halves the record"
    )
    parser.add_argument(
        "--max-drift",
        type=float,
        default=MAX_DRIFT,
        metavar="N",
        help=f"largest error (default: {MAX_DRIFT:g})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model")


def options_given(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `export_file` that the options stand for.

    Raises:
        Refused: A constant cannot be read.
    """
    return {
        "constants": read_constants(options.constant),
        "int8": options.int8,
        "float16_state": options.float16_state,
        "max_drift": options.max_drift,
        "overwrite": options.overwrite,
    }


if __name__ == "__main__":
    sys.exit(main())
