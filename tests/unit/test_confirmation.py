"""Waits for disk and replicas: what a store can give, and how waits are shared."""

import asyncio

import pytest
from hiredis import ReplyError

from holdfast.errors import AckLevelUnsupported, StoreUnavailable
from service.store.confirmation import AckSettings, AckSupport, Confirmer
from service.store.protocol import ACK_LEVELS, AckLevel

BOTH = AckLevel.FSYNCED | AckLevel.REPLICATED
VALKEY = b"redis_version:7.2.4\r\nvalkey_version:9.1.2\r\naof_enabled:1\r\n"
REPLICAS = b"slave0:ip=127.0.0.1,state=online\r\nslave1:ip=127.0.0.1,state=wait_bgsave\r\n"
ALWAYS, EVERYSEC = [b"appendfsync", b"always"], [b"appendfsync", b"everysec"]
REFUSED = ReplyError("NOPERM")


@pytest.mark.parametrize("level", ACK_LEVELS)
def test_a_level_is_read_as_it_is_written(level):
    assert AckLevel.parse(str(level)) is level


@pytest.mark.parametrize(
    ("info", "policy", "replicas", "level", "reason"),
    [
        (b"", ALWAYS, 1, AckLevel.FSYNCED, "redis of unknown version, whose WAITAOF needs 7.4.3 or newer"),
        (b"redis_version:7.4.2\r\n", ALWAYS, 1, BOTH, "redis 7.4.2, whose WAITAOF needs 7.4.3"),
        (b"valkey_version:7.2.9\r\n", ALWAYS, 1, BOTH, "valkey 7.2.9, whose WAITAOF needs 8.0.0"),
        (b"valkey_version:9.1.2\r\n", ALWAYS, 1, AckLevel.FSYNCED, "set appendonly yes"),
        (
            VALKEY,
            EVERYSEC,
            1,
            AckLevel.FSYNCED,
            "9.1.2 and its appendfsync is everysec: its WAITAOF answers",
        ),
        (VALKEY, REFUSED, 1, BOTH, "its appendfsync is not known"),
        (VALKEY, ALWAYS, 0, AckLevel.REPLICATED, "it needs --replicas-required"),
        (VALKEY, ALWAYS, 0, BOTH, "it needs --replicas-required"),
    ],
)
def test_what_a_store_cannot_give_is_said_with_the_reason(info, policy, replicas, level, reason):
    support = AckSupport(info, policy, AckSettings(replicas_required=replicas))
    with pytest.raises(AckLevelUnsupported, match=reason):
        support.check(level)
    support.check(AckLevel.MEMORY)


@pytest.mark.parametrize("version", ["7.4.3", "8.0.0", "10.1"])
@pytest.mark.parametrize("policy", [ALWAYS, EVERYSEC, REFUSED])
def test_what_a_store_can_give_is_not_refused(version, policy):
    info = b"redis_version:%s\r\naof_enabled:1\r\n" % version.encode()
    AckSupport(info, policy, AckSettings(replicas_required=1)).check(BOTH)
    AckSupport(VALKEY, ALWAYS, AckSettings(replicas_required=1)).check(BOTH)


def test_replicas_must_be_there_at_start_where_they_are_the_default():
    AckSupport(VALKEY, ALWAYS, AckSettings(replicas_required=1)).check_default()
    asked = AckSettings(level=AckLevel.REPLICATED, replicas_required=2)
    with pytest.raises(AckLevelUnsupported, match=r"needs 2 connected replicas .* 1 are connected"):
        AckSupport(VALKEY + REPLICAS, EVERYSEC, asked).check_default()
    asked = AckSettings(level=AckLevel.REPLICATED, replicas_required=1)
    AckSupport(VALKEY + REPLICAS, EVERYSEC, asked).check_default()


class FakeConnection:
    """Stands for both connections: counts waits, which end when they are told to."""

    def __init__(self):
        self.epoch = 1
        self.is_connected = True
        self.policy = ALWAYS
        self.information = [b"run_id:1\r\n" + VALKEY, b"role:master\r\nmaster_replid:2\r\n"]
        self.identity = b"run_id:1 role:master master_replid:2"
        self.drops = 0
        self.commands = []
        self.waits = []
        self.started = asyncio.Event()
        self.fails = False

    def sibling(self, more_s):
        return self

    async def open(self):
        if self.fails:
            raise StoreUnavailable("gone")

    async def close(self):
        pass

    def leave(self, why):
        self.drops += 1

    def execute(self, *command):
        self.commands.append(command[0])
        reply = asyncio.get_running_loop().create_future()
        if command[0].startswith("WAIT"):
            self.waits.append(reply)
            self.started.set()
        else:
            reply.set_result(self.policy if command[0] == "CONFIG" else b"OK")
        return reply

    def identify(self):
        replies = [asyncio.get_running_loop().create_future() for _ in self.information]
        for reply, text in zip(replies, self.information, strict=True):
            reply.set_result(text)
        return replies

    async def end_wait(self, reply):
        """Answers the wait that is under way, or the next one."""
        await asyncio.wait_for(self.started.wait(), 5)
        self.started.clear()
        self.waits[-1].set_result(reply)


@pytest.fixture
async def connection():
    return FakeConnection()


@pytest.fixture
async def confirmer(connection):
    confirmer = Confirmer(connection, lambda: b"marker", AckSettings(replicas_required=2, timeout_s=5))
    yield confirmer
    await confirmer.close()


def ask(confirmer, level=AckLevel.REPLICATED, epoch=1):
    return asyncio.create_task(confirmer.confirm(level, epoch))


async def test_all_who_come_while_one_waits_share_the_next(confirmer, connection):
    first = ask(confirmer)
    await asyncio.wait_for(connection.started.wait(), 5)
    later = [ask(confirmer) for _ in range(20)]
    await asyncio.sleep(0)
    await connection.end_wait(2)
    assert await first is None
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in later), "a wait that began before confirmed them"
    await connection.end_wait(2)
    assert await asyncio.gather(*later) == [None] * 20
    assert connection.commands == ["SET", "WAIT"] * 2


async def test_both_levels_are_waited_for_at_once(confirmer, connection):
    both = ask(confirmer, BOTH)
    while len(connection.waits) < 2:  # noqa: ASYNC110 -- two lanes, no event
        await asyncio.sleep(0)
    for wait, command in zip(connection.waits, ("WAITAOF", "WAIT"), strict=True):
        wait.set_result([1, 0] if command == "WAITAOF" else 2)
    assert await asyncio.wait_for(both, 5) is None


@pytest.mark.parametrize("reply", [1, 0])
async def test_too_few_copies_are_an_error_that_says_so(confirmer, connection, reply):
    waiting = ask(confirmer)
    await connection.end_wait(reply)
    refusal = await waiting
    assert refusal.reason == "ACK_LEVEL_NOT_REACHED"
    assert f"{reply} of 2 copies" in refusal.message
    assert refusal.retry_after_s > 0


async def test_a_file_that_is_not_synced_is_an_error_that_says_so(confirmer, connection):
    waiting = ask(confirmer, AckLevel.FSYNCED)
    await connection.end_wait([0, 0])
    assert "0 of 1 copies" in (await waiting).message


async def test_a_policy_that_is_changed_meanwhile_takes_the_belief_away(confirmer, connection):
    waiting = ask(confirmer, AckLevel.FSYNCED)
    await connection.end_wait([1, 0])
    assert await waiting is None
    connection.policy = EVERYSEC
    waiting = ask(confirmer, AckLevel.FSYNCED)
    await connection.end_wait([1, 0])
    assert "set appendfsync always" in (await waiting).message


async def test_an_epoch_that_has_passed_is_not_confirmed(confirmer, connection):
    waiting = ask(confirmer, epoch=0)
    await connection.end_wait(2)
    assert "made anew" in (await waiting).message


async def test_an_epoch_that_passes_meanwhile_is_not_confirmed(confirmer, connection):
    waiting = ask(confirmer)
    await asyncio.wait_for(connection.started.wait(), 5)
    connection.epoch += 1
    await connection.end_wait(2)
    assert "meanwhile" in (await waiting).message
    assert connection.drops == 0


async def test_a_server_with_another_history_does_not_confirm_and_is_parted_from(confirmer, connection):
    connection.information = [b"run_id:1\r\n", b"role:master\r\nmaster_replid:3\r\n"]
    waiting = ask(confirmer)
    await connection.end_wait(2)
    assert "another server" in (await waiting).message
    assert connection.drops == 1


async def test_a_server_that_does_not_say_who_it_is_does_not_confirm(confirmer, connection):
    connection.information, connection.identity = [b"", b""], None
    waiting = ask(confirmer)
    await connection.end_wait(2)
    assert "INFO" in (await waiting).message
    assert connection.drops == 0


async def test_a_connection_that_cannot_be_made_confirms_nothing_and_is_tried_again(confirmer, connection):
    connection.fails = True
    assert "gone" in (await ask(confirmer)).message
    connection.fails = False
    waiting = ask(confirmer)
    await connection.end_wait(2)
    assert await waiting is None


async def test_nobody_waits_for_longer_than_the_limit(connection):
    confirmer = Confirmer(connection, lambda: b"marker", AckSettings(replicas_required=1, timeout_s=0.05))
    assert "not within 0.05 s" in (await asyncio.wait_for(ask(confirmer), 5)).message
    await confirmer.close()
