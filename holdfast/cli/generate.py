"""`holdfast generate`: has a session generate, and prints the tokens as they come."""

import argparse
import codecs
import json
import math
import sys
from typing import Any

import numpy as np

from holdfast.cli.calling import add_server_options, ask_server
from holdfast.client.generated import GeneratedToken, GenerateOptions
from holdfast.client.options import OpenOptions
from holdfast.client.sync import Client

DEFAULT_TOKENS = 256
STDIN = "-"


def main(arguments: list[str]) -> int:
    """Generates in one session.

    Returns:
        0, or 1 if the server refused; argparse exits with 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    return ask_server("generate", options, lambda client: _generate(client, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "holdfast generate",
        description="Applies a prompt to a session, has it generate tokens, and prints them as they come. "
        "Each is committed before it is printed; the same command goes on after the last one.",
    )
    parser.add_argument(
        "session_id", metavar="SESSION", help="id of the session; opened if it does not exist"
    )
    parser.add_argument(
        "--model", metavar="NAME", help="model to open the session with; needed if it does not exist"
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="text to apply first (default: none)")
    prompts.add_argument("--prompt-file", metavar="FILE", help=f"the same from a file; {STDIN} is stdin")
    prompts.add_argument(
        "--prompt-npy", metavar="FILE", help="ids (k,), or features (k, width), as .npy, to apply first"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=DEFAULT_TOKENS,
        metavar="N",
        help=f"generate at most N tokens (default: {DEFAULT_TOKENS})",
    )
    parser.add_argument(
        "--min-tokens", type=int, metavar="N", help="do not stop before N tokens (default: 0)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="divide the logits by T; 0 takes the likeliest token (default: 1)",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="N", help="draw from the N likeliest tokens (default: all)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens that together reach probability P",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="draw from tokens at least P times as probable as the likeliest",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="make tokens that have occurred less likely, if R > 1 (default: 1)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the random numbers (default: 0)")
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end after this text; may be repeated"
    )
    parser.add_argument(
        "--stop-id",
        action="append",
        type=int,
        metavar="ID",
        help="end before this token id; may be repeated",
    )
    parser.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="with --json: print the N likeliest tokens in each place",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object for each token, one a line"
    )
    add_server_options(parser)
    return parser


def _generate(client: Client, options: argparse.Namespace) -> int:
    prompt = _prompt(options)  # a file that cannot be read opens no session
    opening: OpenOptions = {"model": options.model} if options.model else {}
    session = client.open_session(options.session_id, **opening)
    asked: GenerateOptions = {"stop": [*(options.stop or ()), *(options.stop_id or ())]}
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "min_tokens"):
        if (value := getattr(options, name)) is not None:
            asked[name] = value
    if options.candidates is not None:
        asked["candidates"] = options.candidates
    write = _json_lines() if options.json else _plain
    for token in session.generate(options.max_tokens, prompt, **asked):
        write(token)
    if not options.json and sys.stdout.isatty():
        print()
    return 0


def _prompt(options: argparse.Namespace) -> Any:
    """Returns the tokens to apply first.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is no array.
    """
    if options.prompt_npy is not None:
        try:
            return np.load(options.prompt_npy, allow_pickle=False)
        except (ValueError, EOFError):
            raise ValueError(f"{options.prompt_npy}: it is no .npy file of numbers") from None
    if options.prompt_file is None:
        return options.prompt
    if options.prompt_file == STDIN:
        return sys.stdin.buffer.read()
    with open(options.prompt_file, "rb") as file:
        return file.read()


def _plain(token: GeneratedToken) -> None:
    """Prints the bytes that a token stands for; an id, or features, on a line."""
    line = token.text
    if token.features is not None:
        line = (" ".join(f"{value:.9g}" for value in token.features) + "\n").encode()
    elif not token.text:
        line = f"{token.id}\n".encode()
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _json_lines() -> Any:
    """Returns what prints a token as an object; a character comes with the token that ends it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(token: GeneratedToken) -> None:
        shown: dict[str, Any] = {"position": token.position}
        if token.features is not None:
            shown["features"] = token.features.tolist()
        else:
            log_prob = None if math.isnan(token.log_prob) else token.log_prob
            shown |= {"id": token.id, "text": decoder.decode(token.text), "log_prob": log_prob}
        if token.top:
            shown["top"] = [{"id": number, "log_prob": log_prob} for number, log_prob in token.top]
        if token.replayed:
            shown["replayed"] = True
        print(json.dumps(shown), flush=True)

    return write
