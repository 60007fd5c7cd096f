"""Changes pure files in every way that mutmut knows, and sees that enough is noticed: `make mutations`.

A file's score is the share of its mutants at which one of its tests fails. It must not fall below the floor
written here. Texts are not changed: people read them. Most of what goes unnoticed is equivalent.

It runs on a copy of the tree, so that nothing here changes.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.protections.__main__ import copy_tree
from tests.protections.catalogue import ROOT

MUTMUT = ROOT / ".venv" / "mutmut"
NOT_RUN = 33
"""What mutmut writes for a mutant that no test reaches."""


class Target(NamedTuple):
    """A file, the tests that must notice its mutants, and the lowest score in percent."""

    file: str
    tests: tuple[str, ...]
    floor: int


TARGETS = (
    Target("service/engine/rules.py", ("tests/unit/test_rules.py", "tests/scenarios"), 97),
    Target("service/engine/queue.py", ("tests/unit/test_queue.py", "tests/scenarios"), 92),
    Target("service/engine/window.py", ("tests/unit/test_window.py",), 68),
    Target("service/store/slots.py", ("tests/unit/test_slots.py",), 100),
)

TEXT = (
    r'^\s*f?"',  # a line of a message
    r'\b(raise|return) \w+\(f?"',  # a message in the line of its error
    r"^\s*(raise|return) \w+\($",  # the statement that such lines belong to
    r"retry_after_s=",
)
"""Lines that are not changed."""

COPIED = ("models", "model_export", "docs", "proto", "Makefile", "constraints.txt")


def main(arguments):
    """Runs the command; returns 0 if no file is below its floor."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("words", nargs="*", help="only files whose path has one of these")
    options = parser.parse_args(arguments)
    targets = [
        one for one in TARGETS if not options.words or any(word in one.file for word in options.words)
    ]
    below = 0
    for target in targets:
        noticed, left = mutate(target)
        score = 100 * len(noticed) / (len(noticed) + len(left))
        print(
            f"{target.file}: {len(noticed)} of {len(noticed) + len(left)} noticed, {score:.0f} %",
            flush=True,
        )
        for text in left:
            print(f"  not noticed:\n{text}")
        below += score < target.floor
    return 1 if below or not targets else 0


def mutate(target):
    """Returns the names of the mutants that were noticed, and how the others changed the file."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = copy_tree(Path(folder) / "tree")
        with (tree / "pyproject.toml").open("a") as config:
            config.write(configuration(target))
        run(tree, "run")
        found = json.loads((tree / "mutants" / f"{target.file}.meta").read_text())["exit_code_by_key"]
        assert found, f"mutmut found nothing to change in {target.file}"
        left = [name for name, code in found.items() if code in (0, None, NOT_RUN)]
        return sorted(found.keys() - set(left)), [changes(run(tree, "show", name)) for name in left]


def configuration(target):
    """Returns mutmut's part of pyproject.toml; JSON's strings and lists are TOML's too."""
    settings = {
        "source_paths": ["service", "holdfast"],
        "only_mutate": [target.file],
        "also_copy": COPIED,
        "do_not_mutate_patterns": TEXT,
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-q"],
        "pytest_add_cli_args_test_selection": target.tests,
        "use_git_change_detection": False,
    }
    return "\n[tool.mutmut]\n" + "".join(
        f"{name} = {json.dumps(value)}\n" for name, value in settings.items()
    )


def run(tree, *words):
    """Runs mutmut in a copy; returns what it prints."""
    command = [sys.executable, "-m", "mutmut", *words]
    environment = {**os.environ, "PYTHONPATH": str(MUTMUT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def changes(shown):
    """Returns the lines of a difference that differ."""
    return "\n".join(line for line in shown.splitlines() if re.match(r"[-+](?![-+])", line))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
