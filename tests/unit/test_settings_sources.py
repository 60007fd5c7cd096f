"""Which source of a setting wins, which names are refused, and what is said of a wrong value."""

import pytest

from service.config import Settings
from service.errors import ConfigurationError
from service.model.apart import parse_apart
from service.settings_sources import SettingsSources

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
        (["--keepalive-s", "0"], {}, None, "--keepalive-s 0: expected a number above 0 [set by flag]"),
        (["--grpc-address", "50051"], {}, None, "--grpc-address 50051: expected HOST:PORT [set by flag]"),
        (["--workers", "0", "--max-rows", "0"], {}, None, "1 to 256 [set by flag]; --max-rows 0: expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(read, flags, variables, file, said):
    with pytest.raises(ConfigurationError) as refused:
        read(flags, variables, file)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


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
