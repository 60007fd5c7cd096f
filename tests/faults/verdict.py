"""The verdict of the fault tests: what clients recorded, judged by the checker."""

import random
import secrets

from holdfast.cli.verify import summary
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.verify.judge import judge
from tests.support.oracle import MODELS

MODEL = "python-source"
REF = pb.ModelRef(name=MODEL)


def assert_held(*histories, models=MODELS):
    """Asserts that nothing was lost, applied twice or wrong, and that it was checked; returns the sum."""
    found = judge(histories, models)
    notes = [f"{name}: {note}" for name, bad in found.bad.items() for note in bad.notes]
    print(summary(found.total), dict(found.total.errors))
    assert found.is_good, "\n".join(notes[:20])
    assert found.total.tokens > 0, "nothing was recomputed"
    return found.total


def seeded():
    """Returns a random generator whose seed is printed, for the report of a failure."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


def chunk(session_id, text, position, **fields):
    """Returns the request of a chunk that asks for the surprise."""
    outputs = pb.OutputSelection(token_log_prob=True)
    tokens = pb.Tokens(text=text)
    return pb.StepRequest(
        chunk=pb.Chunk(
            session_id=session_id, model=REF, tokens=tokens, position=position, outputs=outputs, **fields
        )
    )
