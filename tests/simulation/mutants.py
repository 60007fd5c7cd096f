"""Takes protections out, one at a time, and looks how soon the simulation notices: `python -m
tests.simulation.mutants`.

They are those of `tests/protections` that are named here, and others that only order shows. The simulation
runs on a copy of the tree, from seed 0 on.
"""

import argparse
import os
import queue
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.protections.__main__ import copy_tree
from tests.protections.catalogue import Protection, read

NAMES = (
    "a chunk says which history it means",
    "a commit of unknown fate is not taken for done",
    "a batch that raises is halved until what raises is alone",
    "rows of a batch that stalls run again, apart",
    "each row's answer goes to its own caller",
)

OWN = (
    Protection(
        "a chunk of another incarnation is refused",
        "service/engine/rules.py",
        "    if meant not in (0, stored.incarnation):\n",
        "    if meant < 0:\n",
        "",
        (),
    ),
    Protection(
        "a commit is answered only once it is as durable as asked",
        "service/engine/core.py",
        "        if rows.ack_level:\n            self._effects",
        "        if rows.ack_level and rows.is_replayed:\n            self._effects",
        "",
        (),
    ),
    Protection(
        "an attempt that ended without a word leaves its chunk in doubt",
        "holdfast/client/writer.py",
        "entry.is_unsure = was_unsure or leaves_unsure(error)",
        "entry.is_unsure = False",
        "",
        (),
    ),
    Protection(
        "a kept reply is that of the history before its chunk",
        "service/engine/rules.py",
        "            and claim.digest in (0, reply.digest_before)\n",
        "",
        "",
        (),
    ),
    Protection(
        "every chunk of a session names its history",
        "holdfast/client/ledger.py",
        "            history_digest=history_digest,\n",
        "",
        "",
        (),
    ),
    Protection(
        "an opening sent again finds its own session",
        "service/engine/sessions.py",
        "        is_repeated = opening.nonce != 0 and abs(stored.nonce) == opening.nonce\n",
        "        is_repeated = False\n",
        "",
        (),
    ),
    Protection(
        "what was in memory when the connection broke answers nothing",
        "service/engine/plan.py",
        "max(row.arrived_s(0), self.epoch_seen_s)",
        "row.arrived_s(0)",
        "",
        (),
    ),
    Protection(
        "a reply is that to the message with its tag",
        "holdfast/client/batcher.py",
        "        tag = response.error.tag if is_refusal else response.result.tag\n",
        "        tag = next(iter(line.messages), 0)\n",
        "",
        (),
    ),
    Protection(
        "a part of a reply names the rows that it answers",
        "holdfast/client/batcher.py",
        "[message.rows[row] for row in numbers] or message.rows",
        "message.rows[: len(numbers)] or message.rows",
        "",
        (),
    ),
    Protection(
        "each row has its own tokens",
        "holdfast/client/batcher.py",
        "np.concatenate(tokens).tolist()",
        "np.concatenate(tokens[::-1]).tolist()",
        "",
        (),
    ),
    Protection(
        "an error is that of its own row",
        "holdfast/client/batcher.py",
        "            if row in errors:\n                waiting.reply.set_exception(errors[row])\n",
        "            if errors:\n                waiting.reply.set_exception(errors[min(errors)])\n",
        "",
        (),
    ),
    Protection(
        "rows of a stream that has ended are in doubt",
        "holdfast/client/batcher.py",
        "                self._fail(message, final)\n",
        "                self._fail(message, Overloaded('it ended', retry_after_s=0.0))\n",
        "",
        (),
    ),
    Protection(
        "who waits to run apart is answered when the server leaves",
        "service/engine/failures.py",
        "            if self._is_stopping:\n",
        "            if False:\n",
        "",
        (),
    ),
    Protection(
        "the store compares the stamp before it writes",
        "tests/simulation/store.py",
        "            if not is_expected:\n",
        "            if False:\n",
        "",
        (),
    ),
    Protection(
        "a session whose chunk was taken is held until the chunk is settled",
        "service/engine/core.py",
        "        self._queue.release(rows.keys)\n",
        "        self._queue.release(rows.keys if error is None else [])\n",
        "",
        (),
    ),
    Protection(
        "the store compares the history, not only incarnation and position (the simulated one)",
        "tests/support/fakes.py",
        "stamp == part.expected[size * row : size * (row + 1)]\n",
        "stamp[:16] == part.expected[size * row : size * row + 16]\n",
        "",
        (),
    ),
    Protection(
        "replies are kept until they are acknowledged",
        "service/engine/rules.py",
        "    kept = (*(reply for reply in replies if reply.position > acknowledged), new)\n",
        "    kept = (new,)\n",
        "",
        (),
    ),
    Protection(
        "a copy is in an incarnation of its own",
        "service/engine/copies.py",
        "like._replace(incarnation=draw_incarnation(), nonce=nonce)",
        "like._replace(nonce=nonce)",
        "",
        (),
    ),
    Protection(
        "a fork has no replies of its source",
        "service/engine/copies.py",
        "        record = record._replace(replies=())",
        "        record = record._replace()",
        "",
        (),
    ),
    Protection(
        "a fork that comes again goes on from what it has made",
        "service/engine/copies.py",
        "next(filter(None, made_before), None) or live",
        "live",
        "",
        (),
    ),
    Protection(
        "no copy takes an id that is taken",
        "service/engine/copies.py",
        "    if stored is not None and not stored.deleted:\n        if nonce",
        "    if stored is not None and stored.deleted is None:\n        if nonce",
        "",
        (),
    ),
    Protection(
        "an imported session has its cursor",
        "service/engine/copies.py",
        "self._ttl_s, epoch, exported.cursor)",
        "self._ttl_s, epoch)",
        "",
        (),
    ),
    Protection(
        "a session that is put back is in a new incarnation",
        "service/engine/checkpoints.py",
        "checkpoint.record._replace(incarnation=draw_incarnation(), nonce=-nonce)",
        "checkpoint.record._replace(incarnation=stored.incarnation, nonce=-nonce)",
        "",
        (),
    ),
    Protection(
        "a cursor is stored with its record or not at all (the simulated store)",
        "tests/simulation/store.py",
        "                refusals[number] = Found(found)\n",
        "                refusals[number] = Found(found)\n"
        "                if cursor and found is not None:\n"
        "                    self.siblings[key] = self.siblings.get(key, {}) | {b'cursor': cursor}\n",
        "",
        (),
    ),
    Protection(
        "the replies of a generation are kept while it lasts",
        "service/rpc/generation.py",
        "        self._kept.append((reply.position, len(reply.outputs)))\n",
        "        self._acknowledged = reply.position\n",
        "",
        (),
    ),
    Protection(
        "what is drawn depends on no other row of the batch",
        "service/engine/sampling.py",
        "uniform(seeds, positions[rows])",
        "uniform(seeds, positions[rows] + len(logits) - 1)",
        "",
        (),
    ),
    Protection(
        "nothing is drawn that may not be drawn yet",
        "service/rpc/generation.py",
        "*(limits.stop_ids if is_early else ())",
        "*(limits.stop_ids if is_early and not self._position else ())",
        "",
        (),
    ),
    Protection(
        "the next call of a generation says what was emitted",
        "holdfast/client/generation.py",
        "request.emitted_tokens, request.emitted_text = self._count, self._text",
        "request.emitted_tokens, request.emitted_text = 0, b''",
        "",
        (),
    ),
    Protection(
        "who leaves a generation early learns where the session stands",
        "holdfast/client/generation.py",
        "            if self._is_ahead:\n                self._leave()\n",
        "            if False:\n                self._leave()\n",
        "",
        (),
    ),
    Protection(
        "what a generation commits after it was left comes before what is sent next",
        "holdfast/client/recovery.py",
        "isinstance(error, PositionConflict) and self.left is not None and self.left.is_last",
        "False",
        "",
        (),
    ),
    Protection(
        "a token that another writer applied is not one that was drawn",
        "service/rpc/generation.py",
        "        is_begun = self._count > 0 or not self._wanted.prompt",
        "        is_begun = True",
        "",
        (),
    ),
    Protection(
        "the next call of a generation says which ids were said",
        "holdfast/client/generation.py",
        "            self._said[token.id] = self._said.pop(token.id, None)\n",
        "            pass\n",
        "",
        (),
    ),
    Protection(
        "a store that has lost tokens of a generation is told so",
        "service/rpc/generation.py",
        "        if isinstance(result, PositionGap) and self._kept:\n",
        "        if False:\n",
        "",
        (),
    ),
)
"""`test` is the simulation itself."""

JOBS = 2

FOUND = re.compile(r"seed (\d+) breaks a law.*?\n(.*?)\n.*, ([\d.]+) s of a core", re.DOTALL)


def main(arguments):
    """Runs the command and prints a table; returns 0 if all are noticed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.mutants", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("words", nargs="*", help="only those whose name has one of these")
    parser.add_argument("--minutes", type=float, default=5.0, help="time limit of each (5)")
    options = parser.parse_args(arguments)
    listed = {protection.name: protection for protection in read()}
    mutants = [*(listed[name] for name in NAMES), *OWN]
    words = options.words or [""]
    mutants = [one for one in mutants if any(word in one.name for word in words)]
    print("| taken out | seed | seconds of a core | what was seen |\n|---|---:|---:|---|")
    unnoticed = 0
    trees = queue.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(JOBS) as pool:
        for number in range(JOBS):
            trees.put(copy_tree(Path(folder) / str(number)))

        def take_out(mutant):
            tree = trees.get()
            try:
                return notice(tree, mutant, options.minutes)
            finally:
                trees.put(tree)

        for mutant, (seed, seconds, seen) in zip(mutants, pool.map(take_out, mutants), strict=True):
            unnoticed += seed is None
            place = f"{mutant.name} (`{mutant.file}`)"
            print(f"| {place} | {'' if seed is None else seed} | {seconds} | {seen} |", flush=True)
    return 1 if unnoticed else 0


def notice(tree, mutant, minutes):
    """Returns the seed that notices a mutant, after how many seconds of a core, and what was seen."""
    path = tree / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: its text does not stand once in {mutant.file}")
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--minutes", str(minutes)],
            cwd=tree, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
    finally:
        path.write_text(text)
    found = FOUND.search(done.stdout)
    if found is not None:
        return int(found[1]), found[3], found[2].partition("\n")[0]
    if done.returncode:
        return None, "", f"it could not run: {done.stderr.strip().splitlines()[-1:]}"
    return None, "", f"not noticed in {minutes:g} minutes"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
