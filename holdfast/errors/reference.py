"""Writes docs/errors.md from the errors: `python -m holdfast.errors.reference > docs/errors.md`."""

import inspect
import re
import sys

from holdfast import errors
from holdfast.errors import HoldfastError, ServiceError

CHAPTERS = {
    "Errors of a session": errors.session.__name__,
    "Errors of a request or of the service": errors.service.__name__,
    "Errors of the client": errors.client.__name__,
}
"""Title -> where its errors are."""

PARTS = ("Cause", "Tokens", "Step", "Stream", "Batch", "Retry", "Objective")
"""Of a docstring, after what the error means."""

HEAD = """\
# Errors

Written by `make errors` from `holdfast/errors`. Every error of the Python client is a
`holdfast.HoldfastError` from `holdfast.errors`. Those that the service sends are
`holdfast.errors.ServiceError` as well. An error also says what happened to your tokens:

| attribute | meaning |
|---|---|
| `reason` | the name of the error in the contract, `UPPER_SNAKE`; stable |
| `retryable` | the same call may succeed later; a step only with the `position` that it had |
| `pending` | chunks of the session that may have been applied, or wait to be sent: (position, tokens) |
| `not_applied` | chunks that were taken from you and are known not to have been applied |
| `expected_position` | the position of the stored session, if that matters |
| `retry_after_s` | the delay before a retry that the server asks for |
| `field` | the field of the request, or the argument of a step, that is at fault, if one is |

`pending` belongs to the session, whichever call sent the chunks. An error of a call that sent nothing
therefore names what was pending before.

Two rules cover all errors:

- If `pending` is not empty, call `session.settle()`. It finds out what happened and returns the missing
  replies. The session takes nothing new before.
- If `pending` is empty, none of your tokens is in doubt. What is in `not_applied` is yours again, and the
  session is at `session.position`.

`ValueError` and `TypeError` are about the arguments; nothing was sent.

Some refusals do not come from the stored session, such as `PermissionDenied`. They settle nothing if an
earlier attempt of the same chunk ended without a status. The chunk then stays in `pending`, and the message
says that it may or may not have been applied. Open the session again with `take_over=True`; its position
shows whether it was. Without `take_over`, a copy in transit may still arrive after you looked; with it,
nothing that was sent before is applied.

In the sections below, "repeat" means for a step: with the `position` it had; for a batch: the same rows
at the same positions; after a stream: another stream with what is left. If a section leaves out the step,
the stream or the batch, the error does not occur there. Where a retry helps, the client library retries
within the time limit of the call, so an error that you see has lasted that long.

## All of them

The last column is for operators: which errors the service's
[objective](operate/runbooks.md#what-counts-as-an-error-of-the-service) counts.

| reason | gRPC code | a retry helps | counts against the objective |
|---|---|---|---|
"""


def reference() -> str:
    """Returns the page."""
    rows, sections = "", ""
    for title, module in CHAPTERS.items():
        kinds = [kind for kind in all_errors() if kind.__module__ == module]
        rows += "".join(map(_row, kinds))
        sections += f"\n## {title}\n" + "".join(map(_section, kinds))
    return HEAD + rows + sections


def all_errors() -> list[type[HoldfastError]]:
    """Returns the errors of the service, then those of the client."""
    own = [kind for kind in HoldfastError.__subclasses__() if kind is not ServiceError]
    return [*ServiceError.__subclasses__(), *own]


def parts(kind: type[HoldfastError]) -> dict[str, str]:
    """Returns what the docstring of an error says, by the name of the part; "" is what it means."""
    found, name = {"": ""}, ""
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        begins = re.match(rf"({'|'.join(PARTS)}): ", line)
        if begins:
            name = begins[1]
        found[name] = found.get(name, "") + line.removeprefix(f"{name}: ").strip() + "\n"
    return {name: text.strip() for name, text in found.items()}


def _row(kind: type[HoldfastError]) -> str:
    code, counts = "", ""
    if issubclass(kind, ServiceError):
        code = f"`{kind.code}`"
        why = parts(kind)["Objective"].rstrip(".")
        counts = f"{_yes(kind.counts_against_objective)}: {why[0].lower()}{why[1:]}"
    return f"| [{kind.reason}](#{kind.reason.lower()}) | {code} | {_yes(kind.retry_helps)} | {counts} |\n"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _section(kind: type[HoldfastError]) -> str:
    said = parts(kind)
    retry = said.get("Retry") or ("Helps." if kind.retry_helps else "Does not help.")
    paragraphs = {
        "Means": said[""],
        "Cause": said["Cause"],
        "Tokens": said["Tokens"],
        "Do": _to_do(said),
        "Retry": retry,
    }
    text = "\n\n".join(f"*{name}.* {text}" for name, text in paragraphs.items())
    return f"\n### {kind.reason}\n\n`holdfast.errors.{kind.__name__}`\n\n{text}\n"


def _to_do(said: dict[str, str]) -> str:
    """Joins what to do after a step, a stream and a batch; what is the same is said once."""
    groups: list[tuple[str, str]] = []
    for name in ("Step", "Stream", "Batch"):
        text = said.get(name)
        if text is not None and text == "The same.":
            groups[-1] = (f"{groups[-1][0]}, {name.lower()}", groups[-1][1])
        elif text is not None:
            groups.append((name, text))
    return "\n".join(f"{name}: {text[0].lower()}{text[1:]}" for name, text in groups)


if __name__ == "__main__":
    sys.stdout.write(reference())
