"""Which source of a setting wins, which names are refused, and what is said of a wrong value."""

import codecs
from pathlib import Path
from typing import get_args

import pytest

from service.common.start_errors import ConfigurationError
from service.model.apart import parse_apart
from service.settings.schema import Settings
from service.settings.sources import SettingsSources, flag_of


def kinds_of(field):
    """Returns the types that a setting takes."""
    return {field.annotation, *get_args(field.annotation)}


SECRET = "redis://user:geheim@store"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads settings from flags, variables and the content of a file; gives them and their sources."""

    def read_from(flags=(), variables=None, file=None):
        variables = dict(variables or {})
        if file is not None:
            path = tmp_path / "settings.toml"
            path.write_text(file)
            variables["HOLDFAST_CONFIG"] = str(path)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        sources = SettingsSources(flags, variables)
        return sources.settings(), sources

    return read_from


def test_a_flag_goes_before_a_variable_that_before_the_file_and_that_before_the_default(read):
    file = "max_batch = 3\nmax_rows = 3\nworkers = 3\nreflection = false\n"
    variables = {"HOLDFAST_MAX_BATCH": "2", "HOLDFAST_MAX_ROWS": "2"}
    settings, sources = read(["--max-batch=1"], variables, file)
    assert (settings.max_batch, settings.max_rows, settings.workers) == (1, 2, 3)
    assert (settings.reflection, settings.max_streams) == (False, Settings().max_streams)
    ends = [sources.explained(f"--{name}: x") for name in ("max-batch", "max-rows", "workers", "store")]
    assert ends[0] == "--max-batch: x [set by flag]"
    assert ends[1] == "--max-rows: x [set by HOLDFAST_MAX_ROWS]"
    assert ends[2] == f"--workers: x [set in {settings.config}]"
    assert ends[3] == "--store: x [the default]"
    assert sources.explained("no setting is at fault") == "no setting is at fault"


def test_the_file_of_a_flag_goes_before_that_of_a_variable(read, tmp_path):
    (tmp_path / "other.toml").write_text("workers = 5")
    settings, _ = read(["--config", str(tmp_path / "other.toml")], file="workers = 3")
    assert settings.workers == 5


def test_a_file_whose_value_is_not_used_is_not_refused_for_it(read):
    assert read(["--workers", "2"], file="workers = 'two'")[0].workers == 2


@pytest.mark.parametrize(
    ("flags", "variables", "file", "said"),
    [
        (["--max-batches", "2"], {}, None, "--max-batches is not known, the nearest is --max-batch;"),
        (["--no-workers"], {}, None, "--no-workers is not known"),
        (["--max", "2"], {}, None, "--max is not known"),
        (["--workers"], {}, None, "a value is missing after --workers, expected an integer from 1 to 256"),
        (["serve"], {}, None, "unrecognized arguments: serve"),
        ([], {"HOLDFAST_WORKER": "2"}, None, "is not known, the nearest is HOLDFAST_WORKERS"),
        ([], {"HOLDFAST_XYZZY": "2"}, None, "variable HOLDFAST_XYZZY is not known; unset"),
        ([], {"HOLDFAST_GRPC_PORT": "50051"}, None, "variable HOLDFAST_GRPC_PORT is not known"),
        ([], {}, "max-batch = 2", "the key 'max-batch' is not known, the nearest is max_batch"),
        ([], {}, "[server]\nworkers = 2", "the table [server] is not known"),
        ([], {}, "config = 'other.toml'", "the key 'config' is not known"),
        ([], {}, "workers = ", "it is not TOML"),
        (["--drain-pause-s", "20"], {}, None, "--drain-pause-s is longer than --drain-timeout-s"),
        (["--log-level", "loud"], {}, None, "--log-level loud: expected one of debug, info,"),
        (["--apart", "a=columns"], {}, None, "--apart a=columns: expected NAME=rows, NAME=tokens"),
        (["--apart", "rows"], {}, None, "--apart rows: expected NAME=rows"),
        (["--apart", "a=rows;a=tokens"], {}, None, "it names a twice [set by flag]"),
        (["--keepalive-s", "0"], {}, None, "--keepalive-s 0: expected a number from 1 to 1000000"),
        (["--grpc-address", "50051"], {}, None, "--grpc-address 50051: expected HOST:PORT, "),
        (["--workers", "0", "--max-rows", "0"], {}, None, "1 to 256 [set by flag]; --max-rows 0: expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(read, flags, variables, file, said):
    with pytest.raises(ConfigurationError) as refused:
        read(flags, variables, file)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


NUMBERS = [name for name, field in Settings.model_fields.items() if {int, float} & kinds_of(field)]
HOSTILE = (
    "inf",
    "-inf",
    "nan",
    "1e17",
    "1e-300",
    "-1",
    "-0.5",
    "9223372036854775808",
    "1" * 5000,
    "",
    " ",
    "x",
)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_bounds_is_refused_with_its_range(read, name):
    for given in HOSTILE:
        if given == "1e-300" and name.startswith("drain_"):
            continue  # as good as 0
        with pytest.raises(ConfigurationError) as refused:
            read([f"{flag_of(name)}={given}"])
        said = str(refused.value)
        assert said.startswith(flag_of(name))
        assert "expected " in said
        assert len(said) < 300


@pytest.mark.parametrize("name", NUMBERS)
def test_a_range_has_two_ends(name):
    ends = {
        end for one in Settings.model_fields[name].metadata for end in ("ge", "le") if hasattr(one, end)
    }
    assert ends == {"ge", "le"}


@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if {str, Path} & kinds_of(field)]
)
@pytest.mark.parametrize("given", ["", "\\u0000", "a\\u0000b"])
def test_text_that_no_path_or_address_can_be_is_refused(read, name, given):
    if name == "config" or (name, given) == ("apart", ""):
        return
    with pytest.raises(ConfigurationError, match=rf"{flag_of(name)}.*: expected") as refused:
        read(file=f'{name} = "{given}"')
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:", ":1", "a..b:1", f"{'a' * 64}:1", f"h:{'9' * 5000}", "h:65536", "h:-1", "h:٣", "h"],
)
def test_an_address_that_no_resolver_takes_is_refused(read, address):
    with pytest.raises(ConfigurationError, match=r"--grpc-address .*: expected HOST:PORT"):
        read(["--grpc-address", address])


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + b"workers = 2\r\n",
        codecs.BOM_UTF16_LE + "workers = 2\r\n".encode("utf-16-le"),
        b"workers = 2\r\nmax_batch = 3\r\n",
    ],
)
def test_files_of_other_editors_are_read(read, tmp_path, content):
    (tmp_path / "other.toml").write_bytes(content)
    assert read(["--config", str(tmp_path / "other.toml")])[0].workers == 2


@pytest.mark.parametrize(
    "content", [b"\xff", b"a = " + b"[" * 10_000, b"workers = " + b"1" * 5000, b"\xff\xfea"]
)
def test_a_file_that_is_no_toml_at_all_is_refused_in_a_line(read, tmp_path, content):
    path = tmp_path / "other.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"--config {path}: it is not TOML: "):
        read(["--config", str(path)])


def test_the_end_of_a_line_of_another_system_is_no_part_of_a_variable(read):
    variables = {"HOLDFAST_LOG_LEVEL": "debug\r", "HOLDFAST_TOKENS_FILE": "/tokens.toml\r"}
    settings, _ = read((), variables)
    assert (settings.log_level, settings.tokens_file) == ("debug", Path("/tokens.toml"))


def test_bounds_of_which_a_tenant_gets_less_than_one_are_refused(read):
    with pytest.raises(
        ConfigurationError, match=r"--max-waiting 1: --tenant-share 0\.8 of it is less than one"
    ):
        read(["--max-waiting", "1"])


def test_variables_that_others_set_are_let_be(read):
    variables = {
        "HOLDFAST_SERVICE_HOST": "10.0.0.1",
        "HOLDFAST_SERVICE_PORT": "50051",
        "HOLDFAST_SERVICE_PORT_GRPC": "50051",
        "HOLDFAST_PORT": "tcp://10.0.0.1:50051",
        "HOLDFAST_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "HOLDFAST_PORT_50051_TCP_ADDR": "10.0.0.1",
        "HOLDFAST_HEADLESS_SERVICE_HOST": "10.0.0.1",
        "HOLDFAST_HEADLESS_PORT_50051_TCP_PROTO": "tcp",
        "HOLDFAST_TEST_HERD": "1",
        "HOLDFAST_FAILPOINTS": "before_run=kill",
    }
    assert read((), variables)[0] == Settings()


def test_a_value_that_may_hold_a_password_is_not_shown(read):
    with pytest.raises(ConfigurationError) as refused:
        read(file=f"store = ['{SECRET}']")
    assert str(refused.value).startswith("--store: expected text [set in ")
    assert "geheim" not in str(refused.value)


def test_models_that_run_apart_are_named_with_what_does():
    apart = parse_apart(" clicks=rows ; a=b=tokens,rows;")
    assert apart == {"clicks": {"rows"}, "a=b": {"rows", "tokens"}}
    assert parse_apart("") == {}
