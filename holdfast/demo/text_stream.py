"""`holdfast demo`: a file, byte by byte, beside a network without memory."""

from pathlib import Path

import numpy as np

from holdfast.client.reply import StepReply
from holdfast.demo.judgement import Judgement, judge
from holdfast.demo.oracle import Uninterrupted, run_uninterrupted
from holdfast.demo.screen import Screen
from holdfast.demo.served import served
from model_export.corpus import load_corpus
from service.settings.schema import MODEL, Settings

MODEL_WITHOUT_MEMORY = "python-source-feedforward"
TOP_K = 5
DEFAULT_BYTES = 4000


def stream_text(
    data_dir: Path, store: str, file: Path | None, limit: int | None
) -> tuple[Screen, Judgement]:
    """Streams a file, or a source that the network never saw; returns the last screen and the verdict."""
    title, data = _text(file, DEFAULT_BYTES if limit is None else limit)
    models = Settings().models
    expected = run_uninterrupted(models / MODEL / "1" / "model.onnx", data)
    without = run_uninterrupted(models / MODEL_WITHOUT_MEMORY / "1" / "model.onnx", data)
    replies: list[StepReply] = []
    options = {"top_k": TOP_K, "token_log_prob": True, "outputs": ["logits"]}
    with Screen(title, len(data)) as screen:
        for index, reply in enumerate(served(data_dir, store, MODEL, data, screen, **options)):
            assert reply.token_log_probs is not None
            without_memory = float(without.token_log_probs[index])
            screen.add(data[index], float(reply.token_log_probs[0]), without_memory, reply.top[0])
            replies.append(reply)
    return screen, judge(replies, len(data), lambda reply: difference(reply, expected))


def difference(reply: StepReply, expected: Uninterrupted) -> float:
    """Returns the largest difference of a reply to one byte from the uninterrupted run."""
    index = reply.position - 1
    assert reply.token_log_probs is not None
    pairs = (
        (reply.token_log_probs[0], expected.token_log_probs[index]),
        (reply.outputs["logits"][0], expected.logits[index]),
    )
    return max(float(np.abs(given - right).max()) for given, right in pairs)


def _text(file: Path | None, limit: int) -> tuple[str, bytes]:
    if file is not None:
        return file.name, file.read_bytes()[:limit]
    held_out = load_corpus().held_out
    chosen = next((source for source in held_out if len(source.data) >= limit), held_out[0])
    return chosen.path, chosen.data[:limit]
