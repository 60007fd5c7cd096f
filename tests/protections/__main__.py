"""Takes every protection out, one at a time, and sees its test fail: `python -m tests.protections`.

What is taken out is listed in the TOML files of this folder: of a file the exact text `old`, which stands
in it once, becomes `new`, and then `test` must fail. It runs on copies of the tree, so that nothing here
changes. First the tests run as they are, since a test that always fails proves nothing.
"""

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tests.protections.catalogue import ROOT, read

JOBS = 2
TEST_TIMEOUT_S = 180
BASELINE_TIMEOUT_S = 1800


class Outcome(NamedTuple):
    """What came of taking it out.

    Attributes:
        is_noticed: The test failed.
        text: How, or why not.
    """

    is_noticed: bool
    text: str


def main(arguments):
    """Runs the command; returns 0 if every protection is noticed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.protections", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "words", nargs="*", help="only entries whose file or name has one of these, or that guard one"
    )
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"tests at once ({JOBS})")
    parser.add_argument("--no-baseline", action="store_true", help="do not run the tests as they are first")
    options = parser.parse_args(arguments)
    protections = list(read(words=options.words))
    if not protections:
        print("no protection is listed", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="protections-") as folder:
        trees = [copy_tree(Path(folder) / str(number)) for number in range(options.jobs)]
        if not options.no_baseline and not baseline(trees[0], protections):
            return 1
        outcomes = take_out_all(trees, protections)
    Console(width=None if sys.stdout.isatty() else 160).print(table(protections, outcomes))
    unnoticed = sum(not outcome.is_noticed for outcome in outcomes)
    print(f"{len(outcomes)} protections, {unnoticed} of them can go unnoticed")
    return 1 if unnoticed else 0


def copy_tree(target):
    """Copies what is tracked, and what is new and not ignored; returns where it lies."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    found = run(target, ["-c", "import service, holdfast; print(service.__file__, holdfast.__file__)"], 60)[
        1
    ]
    assert found.count(str(target)) == 2, f"the copy in {target} is not what is imported: {found}"
    return target


def baseline(tree, protections):
    """Runs the tests as they are; says which fail."""
    tests = sorted({protection.test for protection in protections})
    print(f"{len(tests)} tests with every protection in place", flush=True)
    code, output = run_tests(tree, tests, BASELINE_TIMEOUT_S)
    if code:
        print(output[-4000:], file=sys.stderr)
        print("these tests fail with every protection in place, so they prove nothing", file=sys.stderr)
    return code == 0


def take_out_all(trees, protections):
    """Returns the outcomes; each copy of the tree is used by one at a time."""
    free = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def take(protection):
        tree = free.get()
        try:
            outcome = take_out(tree, protection)
        finally:
            free.put(tree)
        print(f"{'ok  ' if outcome.is_noticed else 'BAD '} {protection.name}: {outcome.text}", flush=True)
        return outcome

    with ThreadPoolExecutor(len(trees)) as pool:
        return list(pool.map(take, protections))


def take_out(tree, protection):
    """Takes one protection out of a copy, runs its test, and puts it back."""
    path = tree / protection.file
    if not path.is_file():
        return Outcome(False, f"there is no {protection.file}")
    text = path.read_text()
    count = text.count(protection.old)
    if count != 1:
        return Outcome(False, f"its text stands {count} times in {protection.file}, expected once")
    path.write_text(text.replace(protection.old, protection.new))
    try:
        code, output = run_tests(tree, [protection.test], TEST_TIMEOUT_S)
        return judge(code, tree / "junit.xml", output)
    finally:
        path.write_text(text)


def judge(code, report, output):
    """Reads how pytest ended."""
    if code == 0:
        return Outcome(False, "the test passes without it")
    if code is None:
        return Outcome(False, f"the test hangs: no end within {TEST_TIMEOUT_S} s")
    if code != 1 or not report.exists():
        return Outcome(False, f"the test could not run: {' | '.join(output.strip().splitlines()[-3:])}")
    suite = ElementTree.parse(report).getroot().find("testsuite")
    if int(suite.get("failures")):
        return Outcome(True, "noticed")
    if any("collection" in (error.get("message") or "") for error in suite.iter("error")):
        return Outcome(False, "the test could not be collected")
    return Outcome(True, "noticed, in a fixture")


def run_tests(tree, tests, timeout_s):
    """Runs tests of a copy; returns exit code (None: no end in time) and output."""
    (tree / "junit.xml").unlink(missing_ok=True)
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml", "junit.xml", *tests]
    return run(tree, command, timeout_s)


def run(tree, command, timeout_s):
    """Runs Python such that the modules of a copy are imported, in children of children too."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=tree, env=environment, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output = process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, output


def table(protections, outcomes):
    """Shows all outcomes, those that are bad in red."""
    shown = Table(box=SIMPLE_HEAD, title="Taken out one at a time", title_justify="left")
    for heading in ("protection", "test", "outcome"):
        shown.add_column(heading, overflow="fold")
    for protection, outcome in zip(protections, outcomes, strict=True):
        style = None if outcome.is_noticed else "bold red"
        shown.add_row(protection.name, protection.test.rpartition("::")[2], outcome.text, style=style)
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
