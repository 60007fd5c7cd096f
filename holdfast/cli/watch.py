"""`holdfast watch`: shows what others do with a session, as it happens."""

import argparse
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from holdfast.cli.calling import add_server_options, ask_server
from holdfast.client.labels import labels_of
from holdfast.client.sync import Client
from holdfast.client.watching import WatchedChunk

SHOWN_CHARS = 24
"""Of the tokens of a chunk, in the table."""

SHOWN_NUMBERS = 4
"""Of a token's features, in the table."""


def main(arguments: list[str]) -> int:
    """Prints a line for each chunk until the session ends.

    Returns:
        0, or 1 if the server refused; argparse exits with 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    return ask_server("watch", options, lambda client: _watch(client, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "holdfast watch",
        description="Shows what others do with a session, as it happens, until it ends.",
    )
    parser.add_argument("session_id", metavar="ID", help="id of the session")
    parser.add_argument(
        "--max-rate-hz",
        type=float,
        default=30.0,
        metavar="N",
        help="at most N lines a second, up to 1000; older chunks are skipped (default: 30)",
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="N", help="show the N likeliest next tokens"
    )
    parser.add_argument(
        "--token-log-prob", action="store_true", help="show the log-probability of each token"
    )
    parser.add_argument("--state", action="store_true", help="with --json: the state after each chunk")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each chunk")
    add_server_options(parser)
    return parser


def _watch(client: Client, options: argparse.Namespace) -> int:
    chunks = client.watch_session(
        options.session_id,
        max_rate_hz=options.max_rate_hz,
        top_k=options.top_k,
        token_log_prob=options.token_log_prob,
        state=options.state and options.json,
    )
    labels: Sequence[str] = ()
    if options.top_k and not options.json:
        ref = client.get_session(options.session_id).model
        labels = labels_of(client.get_model(ref.name, ref.version))
    is_first = True
    for chunk in chunks:
        if is_first and not options.json:  # not before a refusal
            print(f"{'time':<12} {'position':>10} {'skipped':>8}  {'tokens':<{SHOWN_CHARS}} {'by'}")
        is_first = False
        print(json.dumps(as_json(chunk)) if options.json else as_line(chunk, labels), flush=True)
    return 0


def as_json(chunk: WatchedChunk) -> dict[str, Any]:
    """Returns a chunk as what JSON can hold; tokens are numbers, text is there as text as well."""
    found: dict[str, Any] = {
        "position": chunk.position,
        "history_digest": chunk.history_digest,
        "incarnation": chunk.incarnation,
        "model_version": chunk.model_version,
        "skipped_tokens": chunk.skipped_tokens,
        "ended": chunk.ended,
    }
    if chunk.tokens is not None:
        found["tokens"] = [value if isinstance(value, int) else value.tolist() for value in chunk.tokens]
        if isinstance(chunk.tokens, bytes):
            found["text"] = chunk.tokens.decode(errors="backslashreplace")
        found["replayed"] = chunk.replayed
        found["committed_unix_s"] = chunk.committed_unix_s
        found["replica"] = chunk.replica
    if chunk.top:
        found["top"] = chunk.top
    if chunk.token_log_probs is not None:
        found["token_log_probs"] = chunk.token_log_probs.tolist()
    if chunk.state:
        found["state"] = {name: value.tolist() for name, value in chunk.state.items()}
    return found


def as_line(chunk: WatchedChunk, labels: Sequence[str] = ()) -> str:
    """Returns a chunk as a line of the table.

    Args:
        chunk: See there.
        labels: Names of the candidates, by id; ids have no names beyond these.
    """
    if chunk.ended:
        what = "the session has ended"
    elif chunk.tokens is None:
        what = "stands here"
    else:
        what = _shortened(chunk.tokens)
    committed = datetime.fromtimestamp(chunk.committed_unix_s, UTC) if chunk.committed_unix_s else None
    time = f"{committed:%H:%M:%S}.{committed.microsecond // 1000:03}" if committed else ""
    line = f"{time:<12} {chunk.position:>10} {chunk.skipped_tokens or '':>8}  {what:<{SHOWN_CHARS}}"
    line += f" {chunk.replica}{' replayed' if chunk.replayed else ''}"
    if chunk.token_log_probs is not None:
        line += f"  log-prob {' '.join(f'{value:.2f}' for value in chunk.token_log_probs)}"
    if chunk.top:
        named = (
            f"{repr(labels[number]) if number < len(labels) else number} {math.exp(log_prob):.2f}"
            for number, log_prob in chunk.top[-1]
        )
        line += f"  next {', '.join(named)}"
    return line.rstrip()


def _shortened(tokens: Any) -> str:
    if isinstance(tokens, bytes):
        text = repr(tokens)[1:]
    elif isinstance(tokens, list):
        text = " ".join(map(str, tokens))
    else:
        rows = [" ".join(f"{value:g}" for value in row[:SHOWN_NUMBERS]) for row in tokens]
        text = "; ".join(rows)
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
