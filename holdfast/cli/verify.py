"""`holdfast verify`: judges what clients recorded, or loads a deployment, records that and judges it."""

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from holdfast import AsyncClient
from holdfast.cli.calling import EXIT_CONFIGURATION, add_server_options, credentials, failed
from holdfast.client.history import Recorder
from holdfast.errors import HoldfastError
from holdfast.v1 import holdfast_pb2 as pb
from holdfast.verify.chain import TOLERANCE
from holdfast.verify.findings import Findings
from holdfast.verify.judge import Verdict, judge
from holdfast.verify.load import Load, LoadSettings
from service.model.apart import parse_apart
from service.settings.schema import MODEL, Settings

EXIT_BROKEN = 1

SHOWN_SESSIONS = 10
SHOWN_NOTES = 3


def main(arguments: list[str]) -> int:
    """Runs the command.

    Returns:
        0 if the promise held, 1 if it did not or nothing could be judged, 2 if something cannot be read.
    """
    options = _parse(arguments)
    try:
        if options.target:
            asyncio.run(_record(options))
        with _progress() as progress:
            verdict = judge(
                options.histories,
                options.models,
                tolerance=options.tolerance,
                apart=options.apart,
                on_session=lambda done, of: progress.update(progress.task_ids[0], completed=done, total=of),
            )
    except (OSError, ValueError) as error:
        return failed("verify", error, EXIT_CONFIGURATION)
    except HoldfastError as error:
        return failed("verify", f"{options.target}: {error}", EXIT_CONFIGURATION)
    if options.json:
        print(json.dumps(to_json(verdict)))
    else:
        report(verdict, Console(highlight=False, width=None if sys.stdout.isatty() else 120))
    return 0 if verdict.is_good and verdict.total.tokens else EXIT_BROKEN


def report(verdict: Verdict, console: Console) -> None:
    """Prints the sum, what is wrong, and the verdict in the last line."""
    table = Table(box=SIMPLE_HEAD, title_justify="left", title=f"{len(verdict.sessions)} sessions")
    for heading in (
        "",
        "requests",
        "replies",
        "retries",
        "replays",
        "errors",
        "digests checked",
        "tokens checked",
        "unchecked",
    ):
        table.add_column(heading, justify="right")
    total = verdict.total
    counts = (total.requests, total.replies, total.retries, total.replays, total.errors.total())
    table.add_row(
        "sum", *(f"{count:,}" for count in (*counts, total.digests, total.tokens, total.unchecked))
    )
    for name, found in list(verdict.bad.items())[:SHOWN_SESSIONS]:
        row = (found.requests, found.replies, found.retries, found.replays, found.errors.total())
        table.add_row(
            name,
            *(f"{count:,}" for count in (*row, found.digests, found.tokens, found.unchecked)),
            style="red",
        )
    console.print(table)
    for reason, count in total.errors.most_common():
        console.print(f"  {reason} {count:,}")
    for name, found in list(verdict.bad.items())[:SHOWN_SESSIONS]:
        for note in found.notes[:SHOWN_NOTES]:
            console.print(f"{name}: {note}", style="red")
    for model, why in sorted(verdict.dependent.items()):
        console.print(f"not row-independent: {model}: {why}", style="red")
    for model in sorted(verdict.models_missing):
        console.print(f"not recomputed: {model} is not in the folder of models", style="yellow")
    is_good = verdict.is_good and total.tokens > 0
    console.print(summary(total), style="bold green" if is_good else "bold red")


def summary(total: Findings) -> str:
    """Returns the last line."""
    if not total.tokens and total.is_good:
        return "nothing could be recomputed, so nothing is proven"
    dependent = f"not row-independent {total.dependent}  " if total.dependent else ""
    return (
        f"lost {total.lost}  twice {total.twice}  reordered {total.reordered}  wrong {total.wrong}  "
        f"unexplained {total.unexplained}  unopened {total.unopened}  {dependent}"
        f"largest difference {total.largest_difference:.1e}"
    )


def to_json(verdict: Verdict) -> dict[str, object]:
    """Returns the sum, and the sessions for which the promise did not hold."""
    return {
        "is_good": verdict.is_good and verdict.total.tokens > 0,
        "sessions": len(verdict.sessions),
        "total": _fields(verdict.total),
        "bad": {name: _fields(found) for name, found in verdict.bad.items()},
        "models_missing": sorted(verdict.models_missing),
        "dependent": verdict.dependent,
    }


def _fields(found: Findings) -> dict[str, object]:
    return {**vars(found), "errors": dict(found.errors)}


async def _record(options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)  # noqa: S311 -- no secret
    print(f"seed {options.seed}", file=sys.stderr)
    who = credentials(options)
    async with AsyncClient(options.target, **who, timeout_s=5) as client:
        if options.model:
            model = await client.get_model(options.model)
        else:
            listed = await client.list_models()
            model = next((model for model in listed if model.name == MODEL), listed[0])
    recorder = Recorder(options.history)
    load = Load(
        lambda: options.target,
        model,
        recorder,
        rng,
        LoadSettings(options.sessions, options.think_ms / 1000, **who),
        prefix=f"verify-{secrets.token_hex(4)}",
    )
    try:
        await _run_for(load, options.seconds, model)
    finally:
        recorder.close()


async def _run_for(load: Load, seconds: float, model: pb.Model) -> None:
    running = asyncio.create_task(load.run())
    with _progress() as progress:
        task = progress.task_ids[0]
        title = f"{model.name} version {model.version}"
        for second in range(round(seconds * 5)):
            progress.update(task, description=f"{title}: {load.good_count:,} replies", total=seconds)
            progress.update(task, completed=second / 5)
            await asyncio.sleep(0.2)
    load.stop()
    await running
    await load.look()
    await load.close()


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task("sessions", total=None)
        yield progress


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="holdfast verify",
        description="Checks what clients recorded (their option `history`): no token may be lost, applied "
        "twice or answered wrongly. Each session is run again without interruption by onnxruntime alone.",
    )
    parser.add_argument("histories", nargs="*", type=Path, metavar="HISTORY", help="files to check")
    parser.add_argument(
        "--models", type=Path, default=Settings().models, metavar="DIR", help="folder of the models"
    )
    parser.add_argument(
        "--apart",
        type=parse_apart,
        default=Settings().apart,
        metavar="NAME=rows,tokens",
        help="--apart of the server",
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="largest difference of an output (default: 1e-5)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    target = parser.add_argument_group(
        "to load a deployment and check it; the sessions of the load are deleted afterwards"
    )
    add_server_options(target, target=None)
    target.add_argument("--history", type=Path, metavar="OUT", help="file to record to; it must not exist")
    target.add_argument("--seconds", type=float, default=30.0, help="duration of the load (default: 30)")
    target.add_argument("--sessions", type=int, default=50, help="concurrent sessions (default: 50)")
    target.add_argument(
        "--think-ms", type=float, default=50.0, help="mean pause of a session, ms (default: 50)"
    )
    target.add_argument("--model", default="", help=f"name of the model (default: {MODEL}, or the first)")
    target.add_argument(
        "--seed", type=int, default=secrets.randbits(32), help="seed of the random load (default: random)"
    )
    options = parser.parse_args(arguments)
    if bool(options.target) == bool(options.histories):
        parser.error("expected histories to check, or --target to load")
    if options.target:
        if options.history is None or options.history.exists():
            parser.error("--target needs --history, a file that does not exist yet")
        if options.seconds <= 0 or options.sessions < 1 or options.think_ms < 0:
            parser.error("--seconds and --sessions are above 0")
        options.histories = [options.history]
    return options
