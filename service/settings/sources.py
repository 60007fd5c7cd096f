"""Where settings come from: a flag, else a HOLDFAST_* variable, else the settings file, else the default.

Every name is looked at before any value is used: an unknown one, wherever it is, refuses the start, since a
setting that is not obeyed is worse than none. What is wrong with a setting is said with its flag first;
`explained` then says where it was set.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import CliSettingsSource, EnvSettingsSource, SettingsError

from service.common.failpoints import VARIABLE as FAILPOINTS
from service.common.start_errors import ConfigurationError
from service.common.text_files import decoded
from service.settings.schema import Settings

PREFIX = "HOLDFAST_"

MOST_SHOWN = 150
"""Characters of a wrong value that are shown."""

_OWN_VARIABLES = re.compile(f"{FAILPOINTS}|HOLDFAST_FAULTS|HOLDFAST_TEST_.*")
"""Variables that tests and their servers read, and that are no settings."""

_SERVICE_LINKS = re.compile(
    r"HOLDFAST_(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT=\w+://.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*)"
)
"""What Kubernetes sets in every pod for a Service whose name begins with `holdfast`; nobody's mistake."""


class SettingsSources:
    """Reads the settings of a process.

    Args:
        arguments: Of the command line, after `serve`.
        environment: Its variables.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._arguments = list(arguments)
        self._environment = environment
        self._from: dict[str, str] = {}

    def settings(self) -> Settings:
        """Returns the settings; `--help` prints them all and ends the process.

        Raises:
            ConfigurationError: A name is unknown, or a value is not allowed.
        """
        _check_flags(self._arguments)
        _check_variables(self._environment)
        try:
            flags = CliSettingsSource[Any](
                Settings, cli_parse_args=self._arguments, cli_exit_on_error=False
            )()
        except SettingsError as error:
            raise ConfigurationError(_complaint(str(error))) from None
        variables = EnvSettingsSource(Settings)()
        values = variables | flags
        self._from = {name: f"set by {variable_of(name)}" for name in variables}
        self._from |= dict.fromkeys(flags, "set by flag")
        file = values.get("config")
        if file is not None:
            try:
                in_file = _read(Path(file))
            except ConfigurationError as error:
                raise ConfigurationError(self.explained(str(error))) from None
            self._from = dict.fromkeys(in_file, f"set in {file}") | self._from
            values = in_file | values
        try:
            return Settings(**values)
        except ValidationError as error:
            problems = (self.explained(_problem(entry)) for entry in error.errors())
            raise ConfigurationError("; ".join(problems)) from None

    def explained(self, message: str) -> str:
        """Returns a message with where the setting is from whose flag it starts with, if it does."""
        found = re.match(r"--([a-z0-9-]+)", message)
        name = found[1].replace("-", "_") if found else ""
        if name not in Settings.model_fields:
            return message
        return f"{message} [{self._from.get(name, 'the default')}]"


def flag_of(name: str) -> str:
    """Returns the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """Returns the variable of a setting."""
    return PREFIX + name.upper()


def allowed(field: FieldInfo) -> str:
    """Returns what values a setting takes, in words."""
    kind = next(
        (kind for kind in (field.annotation, *get_args(field.annotation)) if kind is not None), None
    )
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    kinds = get_args(kind) or (kind,)
    if bool in kinds:
        return "true or false"
    if Path in kinds:
        return "a path"
    if str in kinds:
        return "text"
    return f"{'an integer' if int in kinds else 'a number'}{_range(field)}"


def _range(field: FieldInfo) -> str:
    bounds = {
        name: getattr(limit, name)
        for limit in field.metadata
        for name in ("ge", "gt", "le")
        if getattr(limit, name, None) is not None
    }
    low, above, high = bounds.get("ge"), bounds.get("gt"), bounds.get("le")
    words = {
        (True, False, True): f" from {low} to {high}",
        (True, False, False): f" of {low} or more",
        (False, True, True): f" above {above}, {high} at most",
        (False, True, False): f" above {above}",
    }
    return words.get((low is not None, above is not None, high is not None), "")


def _check_flags(arguments: Iterable[str]) -> None:
    known = {"--help"}
    for name, field in Settings.model_fields.items():
        known.add(flag_of(name))
        if field.annotation is bool:
            known.add(f"--no-{flag_of(name)[2:]}")
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag not in known:
            raise ConfigurationError(
                f"{flag} is not known{_nearest(flag, known, '--')}; --help lists all flags"
            )


def _check_variables(environment: Mapping[str, str]) -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    for name, value in environment.items():
        upper = name.upper()
        if (
            upper.startswith(PREFIX)
            and upper not in known
            and not _OWN_VARIABLES.fullmatch(name)
            and not _SERVICE_LINKS.fullmatch(f"{name}={value}")
        ):
            raise ConfigurationError(
                f"the variable {name} is not known{_nearest(upper, known, PREFIX)}; unset or rename it"
            )


def _read(path: Path) -> dict[str, Any]:
    """Reads a settings file; its keys are names of settings."""
    try:
        values = tomllib.loads(decoded(path.read_bytes()))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(f"--config {path}: {reason}; name a TOML file that can be read") from None
    except (ValueError, RecursionError) as error:  # no TOML, no text, or a number of thousands of digits
        raise ConfigurationError(f"--config {path}: it is not TOML: {error}") from None
    known = Settings.model_fields.keys() - {"config"}
    for name, value in values.items():
        if name not in known:
            what = f"table [{name}]" if isinstance(value, dict) else f"key {name!r}"
            raise ConfigurationError(
                f"--config {path}: the {what} is not known{_nearest(name, known)}; a key is the name of a "
                "setting, as in workers = 2"
            )
    return values


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Returns which known name may be meant, as the rest of a sentence; the prefix is no likeness."""
    names = sorted(one.removeprefix(prefix) for one in known)
    found = difflib.get_close_matches(name.removeprefix(prefix), names, n=1)
    return f", the nearest is {prefix}{found[0]}" if found else ""


def _problem(entry: Mapping[str, Any]) -> str:
    """Returns what is wrong with a value; a value that may be a secret is not shown."""
    if not entry["loc"]:
        return str(entry["ctx"]["error"])
    name = str(entry["loc"][0])
    field = Settings.model_fields[name]
    given = str(entry["input"])
    given = given if len(given) <= MOST_SHOWN else f"{given[:MOST_SHOWN]}…"
    shown = f"{flag_of(name)} {given}" if field.repr else flag_of(name)
    expected = (
        str(entry["ctx"]["error"]) if entry["type"] == "value_error" else f"expected {allowed(field)}"
    )
    return f"{shown}: {expected}"


def _complaint(said: str) -> str:
    """Returns what the parser of flags said, as our own sentence."""
    said = said.removeprefix("error parsing CLI: ")
    missing = re.fullmatch(r"argument (--[\w-]+).*: expected one argument", said)
    if missing:
        name = missing[1][2:].replace("-", "_")
        return f"a value is missing after {missing[1]}, expected {allowed(Settings.model_fields[name])}"
    return f"{said}; --help lists all flags"
