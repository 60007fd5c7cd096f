"""The table of docs/operate/durability.md that says what is lost at most; whether a loss is within it."""

from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operate" / "durability.md"

HOLDFAST, KILLED, SLOW, FULL, SAVED, LEFT, BEHIND = (
    "Holdfast killed",
    "store killed",
    "store killed while no sync ends",
    "store killed while its disk is full",
    "store killed after a snapshot",
    "replica promoted",
    "replica promoted, cut off a moment before",
)
COLUMNS = {
    HOLDFAST: "a Holdfast process is killed",
    KILLED: "the store's process is killed",
    SLOW: "the store's process is killed",
    FULL: "the store's process is killed",
    SAVED: "the store's process is killed",
    LEFT: "the primary is lost, a replica promoted",
    BEHIND: "the primary is lost, a replica promoted",
}
"""Which column says what is lost when this happens."""

LIMIT_S = 3.0
"""Nothing older is lost where a moment may be: two seconds for which a write is held back, or one for which
a replica is cut off here, and one for how late the store and a test look at their clocks."""


NAMES = {f"`appendfsync {policy}`": policy for policy in ("always", "everysec", "no")}
NAMES["`appendonly no`"] = "off"


def rows():
    """Returns the cells by column of each level and policy; policy "off": no append-only file."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = next(row for row in cells if COLUMNS[HOLDFAST] in row)
    return {
        (row[0].strip("`"), NAMES[row[1]]): dict(zip(head, row, strict=True))
        for row in cells
        if row[1] in NAMES
    }


def promises_nothing_lost(case):
    """Whether the table says that nothing is lost; a condition is met, unless the disk is full."""
    cell = rows()[case.level, case.policy][COLUMNS[case.event]]
    return cell == "nothing" or (cell.startswith("nothing,") and case.event != FULL)


def wrong_in(case, loss):
    """Returns what is lost beyond what the table says, in words."""
    what = f"{case}: {loss.tokens} acknowledged tokens are gone"
    if promises_nothing_lost(case):
        return [what] if loss.tokens else []
    if case.policy == "off" and case.event in (KILLED, SAVED):
        return [] if loss.is_younger_than_snapshot else [f"{what}, some from before the snapshot"]
    return [f"{what}, the oldest after {loss.age_s:.1f} s"] if loss.age_s > LIMIT_S else []
