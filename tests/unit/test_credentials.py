"""What a tokens file may say, and whom it lets in."""

import asyncio
import gc
import tomllib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.cli import token as command
from holdfast.errors import PermissionDenied, Unauthenticated
from service.rpc.access import Access
from service.rpc.codec import key_of
from service.rpc.credentials import ANYBODY, Credentials, CredentialsError, new_token, token_entry

HASH = "0" * 64
TENANTS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True)
IDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)


def token(**changes):
    fields = {"sha256": f'"{HASH}"', "tenant": '"acme"', "scopes": '["step"]', **changes}
    return "[[token]]\n" + "".join(f"{key} = {value}\n" for key, value in fields.items() if value)


WRONG = {
    "nothing": ("", "no [[token]]"),
    "no TOML": ("holdfast_secret", "not TOML"),
    "one table": ("[token]\n", "expected [[token]]"),
    "something else": ("[[tokens]]\n", "tokens, expected token, certificate"),
    "the token itself": (token(token='"holdfast_secret"'), "stands token, expected sha256"),
    "no hash": (token(sha256=""), "0 of sha256"),
    "short hash": (token(sha256='"00"'), "64 hexadecimal digits"),
    "hash in capitals": (token(sha256=f'"{"A" * 64}"'), "64 hexadecimal digits"),
    "number": (token(sha256="7"), "64 hexadecimal digits"),
    "no tenant": (token(tenant=""), "tenant of [[token]] 1"),
    "tenant with a colon": (token(tenant='"a:b"'), "tenant of [[token]] 1"),
    "tenant with a brace": (token(tenant='"a}b"'), "tenant of [[token]] 1"),
    "tenant in capitals": (token(tenant='"Acme"'), "tenant of [[token]] 1"),
    "tenant with a line": (token(tenant='"acme\\n"'), "tenant of [[token]] 1"),
    "tenant too long": (token(tenant=f'"{"a" * 64}"'), "tenant of [[token]] 1"),
    "no scopes": (token(scopes=""), "scopes of [[token]] 1"),
    "empty scopes": (token(scopes="[]"), "scopes of [[token]] 1"),
    "unknown scope": (token(scopes='["step", "root"]'), "admin, read-state, step"),
    "scopes of another type": (token(scopes="[[1]]"), "scopes of [[token]] 1"),
    "scope as text": (token(scopes='"step"'), "scopes of [[token]] 1"),
    "twice": (token() + token(tenant='"beta"'), "named twice"),
    "second": (token() + token(sha256='"x"'), "[[token]] 2"),
    "two names": (
        '[[certificate]]\nsan = "a"\ncommon_name = "a"\ntenant = "a"\nscopes = ["step"]\n',
        "2 of san and common_name",
    ),
    "no name": ('[[certificate]]\nsan = ""\ntenant = "a"\nscopes = ["step"]\n', "some text"),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_file_that_is_wrong_is_refused_with_the_reason(text, said):
    with pytest.raises(CredentialsError) as refused:
        Credentials(text)
    assert said in str(refused.value)
    assert "holdfast_secret" not in str(refused.value)


VALUES = [
    "7",
    "1.5",
    "true",
    '""',
    '"x"',
    "[]",
    "[[1]]",
    "[{}]",
    "{}",
    '{a = "b"}',
    "1979-05-27",
    f'"{HASH}"',
]


@given(
    st.dictionaries(st.sampled_from(["sha256", "san", "tenant", "scopes", "x"]), st.sampled_from(VALUES))
)
def test_whatever_stands_in_it_a_file_is_read_or_refused(fields):
    for head in ("[[token]]", "[[certificate]]", "[token]", ""):
        text = head + "\n" + "".join(f"{name} = {value}\n" for name, value in fields.items())
        with pytest.raises(CredentialsError):  # no value above is a list of scopes
            Credentials(text)


@given(st.text(max_size=60))
def test_no_token_lets_in_but_the_one_that_was_made(text):
    real = new_token()
    credentials = Credentials(token_entry(real, "acme", ["step"]))
    assert credentials.of_token(real).tenant == "acme"
    assert credentials.of_token(text) is None


def test_a_text_that_has_no_bytes_is_no_token(tmp_path):
    assert Credentials(token()).of_token("\ud800") is None


def test_tokens_are_long_and_differ():
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(len(each) >= 9 + 43 for each in tokens)  # 256 bits, 6 per character


@given(TENANTS, TENANTS, IDS, IDS)
def test_no_two_sessions_share_a_key(tenant, other_tenant, session_id, other_id):
    is_same = (tenant, session_id) == (other_tenant, other_id)
    assert (key_of(tenant, session_id) == key_of(other_tenant, other_id)) is is_same
    split = key_of(tenant, session_id).decode().removeprefix("holdfast:v1:{")
    assert split == f"{tenant}:{session_id}}}"


@given(st.lists(TENANTS, min_size=1, max_size=5, unique=True))
def test_each_token_is_its_tenants(tenants):
    made = {tenant: new_token() for tenant in tenants}
    entries = [token_entry(made[tenant], tenant, ["step"]) for tenant in tenants]
    credentials = Credentials("\n".join(entries))
    assert {tenant: credentials.of_token(made[tenant]).tenant for tenant in tenants} == {
        tenant: tenant for tenant in tenants
    }


def test_a_certificate_with_the_names_of_two_callers_is_nobodys():
    credentials = Credentials(
        '[[certificate]]\nsan = "a.example"\ntenant = "a"\nscopes = ["step"]\n'
        '[[certificate]]\nsan = "b.example"\ntenant = "b"\nscopes = ["step"]\n'
        '[[certificate]]\ncommon_name = "a.example"\ntenant = "c"\nscopes = ["step"]\n'
    )
    assert credentials.of_certificate(["a.example", "x"], []).tenant == "a"
    assert credentials.of_certificate([], ["a.example"]).tenant == "c"
    for names in ((["a.example", "b.example"], []), (["a.example"], ["a.example"]), (["x"], []), ([], [])):
        assert credentials.of_certificate(*names) is None


def test_a_scope_is_one_of_those_granted():
    caller = ANYBODY._replace(scopes=frozenset({"step"}))
    caller.need("step", "admin")
    with pytest.raises(PermissionDenied, match="read-state or admin"):
        caller.need("read-state", "admin")


def test_a_flood_of_unknown_tokens_leaves_nothing_behind(tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text(token())
    access = Access(path, asks_certificates=False)

    def flood(count):
        for number in range(count):
            with pytest.raises(Unauthenticated):
                access.of_metadata((("authorization", f"Bearer {number}{'x' * 4000}"),))
        gc.collect()

    flood(10)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    flood(500)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 200_000, "500 tokens of 4 KB would be 2 MB"


def test_the_command_prints_a_token_and_the_entry_that_knows_it(capsys):
    assert command.main(["create", "--tenant", "acme", "--scopes", "step", "read-state"]) == 0
    said = capsys.readouterr()
    made = said.err.split()[-1]
    caller = Credentials(said.out).of_token(made)
    assert (caller.tenant, caller.scopes) == ("acme", {"step", "read-state"})
    assert made not in said.out
    assert tomllib.loads(said.out)["token"][0]["tenant"] == "acme"


@pytest.mark.parametrize("options", [["--tenant", "A:B"], ["--scopes", "root"]])
def test_the_command_refuses_what_a_server_would(capsys, options):
    assert command.main(["create", *options]) == 2
    assert capsys.readouterr().out == ""


async def test_a_call_let_in_just_before_its_credential_was_revoked_ends_at_once(tmp_path):
    path = tmp_path / "tokens.toml"
    made = new_token()
    path.write_text(token_entry(made, "acme", ["step"]))
    access = Access(path, asks_certificates=False)
    caller = access.of_metadata((("authorization", f"Bearer {made}"),))
    with access.holding(caller):
        pass
    path.write_text(token())
    await access.refresh()
    with pytest.raises(Unauthenticated, match="revoked"), access.holding(caller):
        pytest.fail("it was let in")


async def test_a_held_call_that_is_cancelled_by_its_client_too_is_cancelled(tmp_path):
    path = tmp_path / "tokens.toml"
    made = new_token()
    path.write_text(token_entry(made, "acme", ["step"]))
    access = Access(path, asks_certificates=False)
    caller = access.of_metadata((("authorization", f"Bearer {made}"),))
    entered = asyncio.Event()

    async def serve():
        with access.holding(caller):
            entered.set()
            await asyncio.sleep(3600)

    revoked, both = asyncio.create_task(serve()), asyncio.create_task(serve())
    await entered.wait()
    path.write_text(token())
    await access.refresh()
    both.cancel()
    outcomes = await asyncio.gather(revoked, both, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unauthenticated, asyncio.CancelledError]
