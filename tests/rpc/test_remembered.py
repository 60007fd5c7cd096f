"""What callers write is not remembered: no cache grows by its size or by how much of it comes."""

import ast
from pathlib import Path

import numpy as np
import pytest

from holdfast import history_digest
from holdfast.v1 import holdfast_pb2 as pb
from tests.rpc.test_hostile_input import resident_bytes

REQUESTS = 60
GROWTH_BYTES = 16 << 20
ROOT = Path(__file__).parents[2]

CACHES = {
    ("holdfast/history_digest.py", "_powers"): "1,024 lengths of a chunk, two numbers each",
    ("holdfast/history_digest.py", "_powers_array"): "the same as arrays",
    ("holdfast/history_digest.py", "_ascending"): "lengths that are powers of two, up to 2^16: 2 MiB",
    ("holdfast/client/ledger.py", "_kind"): "256 kinds of rows that callers of this process send",
    ("service/model/check.py", "_tell_once"): "some of five names",
    ("service/engine/checks.py", "_checked"): "1,024 valid asks, of the model's own names",
    ("service/engine/ranking.py", "_ones"): "64 widths of models' outputs",
    ("service/store/outputs.py", "_head"): "1,024 numbers and lengths in outputs, 200 bytes each",
    (
        "service/store/outputs.py",
        "_named_head",
    ): "1,024 shapes of models' tensors, by the models' own names",
    ("service/store/record_rows.py", "_constant_headers"): "256 sizes of replies, 150 bytes each",
}
"""Functions that remember results, by what, and how much that is at most."""


def junk(number):
    """Names that no model has: few bytes to send, many to keep, and others in every request."""
    return [chr(0x4E00 + number * 100 + index % 97) for index in range(12_000)]


def selections(rpc):
    """Sends selections; each has a name for how it is refused, or why it is not."""
    model = pb.ModelRef(name="features")

    def batch(number):
        outputs = pb.OutputSelection(tensors=junk(number))
        return pb.Batch(session_ids=["remembered"], model=model, features=bytes(8), outputs=outputs)

    def chunk(number, first):
        outputs = pb.OutputSelection(tensors=[first, *junk(number)])
        features = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=(1, 2), data=bytes(8))
        tokens = pb.Tokens(features=features)
        return pb.Chunk(session_id="remembered", model=model, tokens=tokens, outputs=outputs)

    return {
        "unknown names in a batch": lambda n: rpc.call("StepBatch", pb.StepBatchRequest(batch=batch(n))),
        "unknown names in a chunk": lambda n: rpc.call("Step", pb.StepRequest(chunk=chunk(n, "y"))),
        "all, and unknown names": lambda n: rpc.call("Step", pb.StepRequest(chunk=chunk(n, "*"))),
    }


@pytest.mark.parametrize(
    "kind", ["unknown names in a batch", "unknown names in a chunk", "all, and unknown names"]
)
def test_a_selection_that_a_caller_makes_up_is_not_kept(rpc, kind):
    rpc.open("remembered", model="features")
    send = selections(rpc)[kind]
    for number in range(5):
        send(number)
    before = resident_bytes(rpc.server)
    for number in range(REQUESTS):
        send(5 + number)
    assert resident_bytes(rpc.server) - before < GROWTH_BYTES


def test_a_tensor_that_is_named_often_is_given_once(rpc):
    rpc.open("named", model="features")
    features = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=(1, 2), data=bytes(8))
    outputs = pb.OutputSelection(tensors=["y"] * 100)
    reply = rpc.step("named", model="features", tokens=pb.Tokens(features=features), outputs=outputs)
    assert [named.name for named in reply.result.outputs.tensors] == ["y"]


def test_a_long_chunk_leaves_little_behind_and_is_digested_like_a_short_one():
    elements = np.arange(3 * history_digest._MANY + 5, dtype=np.uint32)
    ((a, b),) = history_digest.sums_of(elements.reshape(1, -1)).tolist()
    expected = history_digest.INITIAL
    for part in np.array_split(elements, 1000):
        expected = history_digest.run_of(part).after(expected)
    assert history_digest.Run(a, b, len(elements)).after(history_digest.INITIAL) == expected
    longest = max(len(history_digest._ascending(half, 16 << n)) for half in (0, 1) for n in range(13))
    assert longest == history_digest._MANY
    assert history_digest._ascending.cache_info().currsize <= 2 * 13


def test_every_function_that_remembers_is_listed_with_its_bound():
    found = set()
    for folder in ("service", "holdfast", "model_export"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.FunctionDef)
                    and node.args.args
                    and any(
                        "cache" in name.lower()
                        for name in map(ast.unparse, node.decorator_list)
                        if "cached_property" not in name  # lives as long as its object
                    )
                ):
                    found.add((str(path.relative_to(ROOT)), node.name))
    assert found == set(CACHES)
