"""The process that looks at a model file for people: what it declares, if it is served, how fast it is.

It gives up what a check does (`service.model.check_process`), makes the same check, and says what it found
as one JSON text. `service.model.inspection` starts it, and believes it no more than the file.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from service.model.bundle import unpack
from service.model.check_process import give_up, leave_with, read_all, refusal_by, try_in_time
from service.model.confinement import confine
from service.model.document import PREFIX
from service.model.inspection import MAX_REPORT_BYTES
from service.model.loading import load_model
from service.model.measuring import measured_outputs, step_times
from service.model.onnx_wire import check_file
from service.model.step_graph import BareGraph
from service.model.subwords import import_tokenizers
from service.model.trial import NotIndependent


def main() -> None:
    """Reads, looks, says what it found and ends."""
    leave_with(int(sys.argv[3]))
    import_tokenizers()  # no file can be opened later
    confine(lambda: give_up(cpu_s=int(sys.argv[1]), memory_bytes=int(sys.argv[2])))
    _say(json.dumps(_report()).encode()[:MAX_REPORT_BYTES])
    os._exit(0)  # without tearing down what may be damaged


def _report() -> dict[str, Any]:
    """Returns what was found; `refusal` is why the file is not served, "" if it is."""
    report: dict[str, Any] = {"refusal": ""}

    def declare() -> None:
        data = read_all()
        bundle = unpack(data)
        report["operators"] = {
            b".".join(filter(None, operator[:2])).decode(errors="replace"): count
            for operator, count in check_file(bundle.graph).items()
        }
        bare = BareGraph(bundle.graph)
        for side in ("inputs", "outputs", "switches"):
            tensors = getattr(bare.declared, side)
            report[side] = {name: [tensor.dtype, list(tensor.shape)] for name, tensor in tensors.items()}
        report["metadata"] = {key: text for key, text in bare.metadata.items() if key.startswith(PREFIX)}
        report["refusal"] = refusal_by(lambda: serve(data)).decode(errors="replace")
        if report["refusal"]:
            report["measured"] = measured_outputs(bare, bundle)

    def serve(data: bytes) -> None:
        model = load_model(Path(), name="", version=1, data=data)
        try:
            report["differences"] = try_in_time(model, data)
        except NotIndependent as error:
            report["apart"] = list(error.apart)
            raise
        report["step_s"] = step_times(model)
        report["state_bytes"] = model.contract.state_bytes

    refusal = refusal_by(declare).decode(errors="replace")
    return report | ({"refusal": refusal} if refusal else {})


def _say(text: bytes) -> None:
    while text:
        text = text[os.write(1, text) :]


if __name__ == "__main__":
    main()
