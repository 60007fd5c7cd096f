"""Ctrl-C and the end of the interpreter, in processes of their own: prompt, quiet, and nothing is lost."""

import subprocess
import sys
import textwrap
import threading
import time

import pytest

from tests.support.scripted_server import SILENT, STUCK, ScriptedServer

PROMPT_S = 5.0

START = """
import asyncio, gc, itertools, os, queue, signal, sys, threading, time
import holdfast
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in the background
retry = holdfast.RetryPolicy(initial_s=0.01, max_s=0.02, attempt_s=60)

def interrupt_after(seconds):
    def interrupt():
        time.sleep(seconds)
        print("interrupted", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()

client = holdfast.Client(sys.argv[1], retry=retry, timeout_s=60)
session = client.open_session("s", model="m")
"""


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


def run(server, code, limit_s=PROMPT_S):
    """Runs a program; returns what it printed after `interrupted`, and fails if it then ended too late."""
    command = [sys.executable, "-c", START + textwrap.dedent(code), server.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        while (line := process.stdout.readline()).strip() != "interrupted":
            assert line, process.communicate(timeout=30)
        marked_s = time.monotonic()
        said, errors = process.stdout.read(), process.stderr.read()
        process.wait(30)
        assert time.monotonic() - marked_s < limit_s
    finally:
        watchdog.cancel()
        process.kill()
        process.stdout.close()
        process.stderr.close()
    assert (process.returncode, errors) == (0, ""), errors
    return said.splitlines()


INTERRUPTED = """
interrupt_after(0.4)
try:
    {call}
except KeyboardInterrupt:
    print("KeyboardInterrupt")
print(session.position, session.pending)
"""


@pytest.mark.parametrize("closes", [False, True])
@pytest.mark.parametrize(
    ("call", "script", "pending"),
    [
        ("session.step(b'ab')", [SILENT], ((0, b"ab"),)),
        ("list(session.stream(b'ab'))", [STUCK], ((0, b"a"),)),
        ("list(session.stream(iter([b'ab', b'cd'])))", [None, STUCK], ((1, b"b"),)),
        ("list(session.stream(iter(queue.Queue().get, None)))", [], ()),
        ("list(session.stream(part for part in itertools.repeat(0) if time.sleep(60)))", [], ()),
        ("list(session.stream(waiting()))", [], ()),
        ("session.settle() or session.step(b'ab', position=0)", [STUCK], ((0, b"ab"),)),
    ],
)
def test_an_interrupt_comes_out_as_one_at_once(server, call, script, pending, closes):
    server.script.extend(script)
    define = """
    async def waiting():
        await asyncio.sleep(60)
        yield b"x"
    """
    code = textwrap.dedent(define) + INTERRUPTED.format(call=call) + ("client.close()" if closes else "")
    assert run(server, code) == ["KeyboardInterrupt", f"{len(pending) and pending[0][0]} {shown(pending)}"]


def shown(pending):
    chunks = [f"PendingChunk(position={position}, tokens={tokens!r})" for position, tokens in pending]
    return f"({', '.join(chunks)}{',' * (len(chunks) == 1)})"


def test_an_interrupt_of_a_loop_body_leaves_its_stream_in_good_order(server):
    code = """
    interrupt_after(0.4)
    try:
        for reply in session.stream(b"abcdef"):
            time.sleep(60)
    except KeyboardInterrupt:
        print("KeyboardInterrupt", session.position)
    session.settle()
    print(session.position, session.step(b"x").position - session.position)
    """
    said = run(server, code)
    assert said[0] == "KeyboardInterrupt 1"
    assert said[1].endswith(" 0")


def test_interrupts_at_any_moment_lose_and_double_nothing(server):
    """A timer interrupts steps and streams, hundreds of times; what came out is all that was applied.

    Not even the reply that comes with an interrupt is lost: the settlement gives it.
    """
    code = """
    import random, warnings

    warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that were interrupted before they began

    def unraisable(what, report=sys.unraisablehook):
        if not isinstance(what.exc_value, KeyboardInterrupt):  # in a finaliser Python lets none come out
            report(what)

    sys.unraisablehook = unraisable
    rng = random.Random(7)
    given, interrupts, is_calling = b"", 0, False

    def interrupt(*_):
        if is_calling:  # else it came too early or too late, and the call is not what it hits
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)

    def take(replies):
        global given
        given += b"".join(bytes(map(int, reply.token_log_probs)) for reply in replies)

    print("interrupted", flush=True)
    for number in range(400):
        replies = []
        try:
            is_calling = True
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.003))
            if number % 2:
                replies.append(session.step(bytes([number % 90 + 32])))
            else:
                replies.extend(session.stream(iter([b"abc", b"def"]), chunk=2, max_in_flight=3))
            is_calling = False
        except KeyboardInterrupt:
            is_calling = False
            interrupts += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        take(replies)
        take(session.settle())
    print(interrupts > 100, given.decode())
    sys.stdout.flush()
    """
    assert run(server, code, 60) == [f"True {server.applied().decode()}"]


@pytest.mark.parametrize(
    "code",
    [
        "stream = session.stream(b'abcdef'); next(stream)",
        "stream = session.stream(iter([b'abcdef']), max_in_flight=4); next(stream)",
        "stream = session.stream(later()); next(stream)",
        "threading.Thread(target=lambda: session.step(b'x'), daemon=True).start(); time.sleep(0.3)",
    ],
)
def test_the_interpreter_exits_with_things_left_open(server, code):
    server.script.extend([None, STUCK])
    define = textwrap.dedent("""
    async def later():
        for byte in b"abcdef":
            yield bytes([byte])
    """)
    run(server, f"{define}\n{code}\nprint('interrupted', flush=True)")


def test_a_generator_that_the_garbage_collector_ends_blocks_nobody(server):
    code = """
    class Knot:
        pass

    for _ in range(5):
        knot = Knot()
        knot.itself, knot.stream = knot, session.stream(b"abc")
        next(knot.stream)
        del knot
        gc.collect()
        session.settle()
    print("interrupted", flush=True)
    print(session.pending)
    client.close()
    """
    assert run(server, code) == ["()"]


def test_a_source_that_blocks_for_ever_does_not_hold_up_the_end_of_a_program(server):
    code = """
    def source():
        yield b"a"
        time.sleep(3600)

    async def main():
        async with holdfast.AsyncClient(sys.argv[1]) as client:
            session = await client.open_session("t", model="m")
            try:
                async with asyncio.timeout(0.5):
                    async for reply in session.stream(source()):
                        print(reply.position)
            except TimeoutError:
                print("interrupted", flush=True)
            print(session.pending)

    asyncio.run(main())
    client.close()
    """
    assert run(server, code) == ["()"]
