"""Where the keys of deployments lie that share a store."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.cli import store as store_command
from service.common.start_errors import ConfigurationError
from service.settings.schema import Settings
from service.settings.sources import SettingsSources
from service.store.acl import store_rule
from service.store.keys import KeySpace, session_key, session_keys, set_aside_key
from service.store.slots import slot_of

PREFIXES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
IDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)


def test_by_default_keys_lie_where_they_always_did():
    space = KeySpace(Settings().key_prefix)
    assert space.is_default
    assert space.pattern == "holdfast:v1:*"
    assert space.placed([session_key("t", "s")]) == [b"holdfast:v1:{t:s}"]
    assert (space.ack_marker, space.ack_marker_of(3)) == (b"holdfast:v1:wait", b"holdfast:v1:wait:3")


@given(PREFIXES, IDS)
def test_a_session_keeps_its_slot_and_what_is_set_aside_lies_beside_it(prefix, session_id):
    key = session_key("tenant", session_id)
    [placed] = KeySpace(prefix).placed([key])
    assert placed == f"{prefix}:v1:{{tenant:{session_id}}}".encode()
    assert slot_of(placed) == slot_of(set_aside_key(placed)) == slot_of(key)


@given(st.text("abc-{}", min_size=1), st.lists(IDS, min_size=1))
def test_many_keys_are_what_they_are_one_by_one(tenant, ids):
    assert session_keys(tenant, ids) == [session_key(tenant, session_id) for session_id in ids]


@given(PREFIXES, PREFIXES, IDS)
def test_no_prefix_reaches_into_the_keys_of_another(one, other, session_id):
    keys = [*KeySpace(other).placed([session_key("t", session_id)]), KeySpace(other).ack_marker_of(1)]
    for key in keys:
        assert fnmatch.fnmatchcase(key.decode(), KeySpace(one).pattern) is (one == other)


@given(PREFIXES, PREFIXES, st.integers(0, 99))
def test_channels_are_those_of_a_prefix_and_a_database(one, other, database):
    channel = KeySpace(other).channel(database, "watched")
    assert fnmatch.fnmatchcase(channel.decode(), KeySpace(one).pattern) is (one == other)
    assert channel != KeySpace(other).channel(database + 1, "watched")


WRONG = [
    "a:b",
    "a{b",
    "a}b",
    "a*",
    "a?",
    "[a]",
    "A",
    "é",
    "a b",
    ".a",
    "-a",
    "_a",
    "a" * 65,
    "a\\",
]


@pytest.mark.parametrize("prefix", WRONG)
def test_a_prefix_that_could_is_refused(prefix, capsys):
    expected = r"expected 1\.\.64 of a-z, 0-9, '\.', '_' and '-', a letter or digit first"
    with pytest.raises(ConfigurationError, match=expected) as refused:
        SettingsSources([f"--key-prefix={prefix}"], {}).settings()
    assert "--key-prefix" in str(refused.value)
    assert "[set by flag]" in str(refused.value)
    assert store_command.main(["acl", f"--key-prefix={prefix}"]) == 2
    assert "--key-prefix" in capsys.readouterr().err


def test_the_rule_of_the_stores_user_has_its_prefix(capsys):
    assert " ~holdfast:v1:* " in store_rule("h")
    assert store_command.main(["acl", "--key-prefix", "team-b"]) == 0
    assert " ~team-b:v1:* " in capsys.readouterr().out
