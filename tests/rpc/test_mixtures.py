"""Whatever callers do at the same time, each gets what it would have had alone: mixtures drawn from seeds.

Each mixture is a few dozen callers over fewer sessions of the hash model, on clients that send steps
together. A session with one writer, who neither gives up nor asks for what is wrong, must see no error.
Of the others every reply must continue the history of its session, and in the end one chain of the chunks
that were sent leads to what is stored, with each chunk that was answered in it, once.
"""

import asyncio
import contextlib
import itertools
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

import holdfast
from holdfast import errors
from holdfast.demo.processes import ServerProcess
from holdfast.errors import HoldfastError
from tests.support.hash_oracle import hash_of, hashes_of
from tests.support.models import write_hash_model

pytestmark = pytest.mark.process

MODELS = ("hash", "timed")
SEEDS = range(8)
LIMIT_S = 60.0
"""Of a mixture: a call that hangs ends it."""

IN_DOUBT = (errors.DeadlinePassed, errors.ServerUnavailable)
RIVALRY = (
    errors.PositionConflict, errors.HistoryConflict, errors.PositionGap, errors.SessionDeleted,
    errors.StoreRegressed,
)  # fmt: skip
WRONG = (errors.InvalidRequest, errors.AckLevelUnsupported, errors.AckLevelNotReached)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixtures")
    for name in MODELS:
        path = folder / "models" / name / "1" / "model.onnx"
        write_hash_model(path, has_time_axis=name == "timed")
    with ServerProcess(folder / "data", "--models", str(folder / "models"), "--max-batch", "8") as server:
        yield server


class Book:
    """What is known of one session.

    Attributes:
        sent: Chunks that may have been applied: ends and tokens, by position.
        answered: Tokens and hashes of replies, by position.
        writers: Session objects that step it.
        openings: Under way: one that comes after a deletion would begin another life.
        is_over: It is not opened any more.
        ended_at: Position at which it was deleted.
        is_wild: Some writer gives up, is impatient, or takes over.
    """

    def __init__(self, session_id, model):
        self.session_id = session_id
        self.model = model
        self.sent = defaultdict(set)
        self.answered = {}
        self.writers = 0
        self.openings = 0
        self.is_over = False
        self.ended_at = None
        self.is_wild = False

    def sends(self, position, tokens):
        self.sent[position].add(tokens)

    def answers(self, position, tokens, reply, *, shows_hash=True):
        """Notes a reply to tokens sent at a position."""
        assert reply.session_id == self.session_id
        assert reply.position == position + len(tokens), f"{reply.position}, sent at {position}"
        hashes = reply.outputs["hash"].tolist() if shows_hash else None
        tokens = bytes(list(tokens))  # pending ones may be ids
        known = self.answered.setdefault(position, (tokens, hashes))
        assert known[0] == tokens, f"two chunks were applied at {position}"
        if known[1] is None:
            self.answered[position] = tokens, hashes
        elif hashes is not None:
            assert known[1] == hashes, f"two replies to the chunk at {position}"

    def judge(self, end, state):
        """Finds the chain of chunks that leads to what is stored."""
        chains = [(0, 0, 0)]  # position, hash, answered chunks on the way
        while chains:
            position, found, count = chains.pop()
            if position == end:
                if state in (None, found) and count == len(self.answered):
                    return
                continue
            answered = self.answered.get(position)
            for tokens in self.sent[position] if answered is None else [answered[0]]:
                hashes = hashes_of(tokens, found)
                if position + len(tokens) > end or (answered and answered[1] not in (None, hashes)):
                    continue
                chains.append((position + len(tokens), hashes[-1], count + (answered is not None)))
        raise AssertionError(
            f"no history of {self.session_id} leads to {end} with what was answered: "
            f"{sorted((at, self.answered.get(at), texts) for at, texts in self.sent.items())}"
        )


class Mixture:
    """One mixture.

    Args:
        rng: Decides.
        clients: Over which it calls.
        name: Of its sessions.
    """

    def __init__(self, rng, clients, name):
        self._rng = rng
        self._clients = clients
        models = rng.choice((MODELS, MODELS[:1], MODELS[1:]))
        self._books = [Book(f"{name}.{n}", rng.choice(models)) for n in range(rng.randint(1, 30))]
        self._length = rng.choice((1, 1, 2, 5))  # of most texts, so that they go together
        self._wildness = rng.choice((0.0, 0.1, 0.4))
        self.counts = Counter()

    async def run(self):
        callers = [self._caller() for _ in range(self._rng.randint(2, 40))]
        await asyncio.gather(*callers)
        for book in self._books:
            await self._judge(book)

    async def _judge(self, book):
        if book.ended_at is not None:
            book.judge(book.ended_at, None)
            return
        if not book.sent:
            return
        client = self._rng.choice(self._clients)
        session = await client.open_session(book.session_id, model=book.model, take_over=True)
        state = await session.state()
        book.judge(session.position, int(state["s"]))

    async def _caller(self):
        """Opens a session, which may have other writers, and does things with it."""
        rng = self._rng
        book = rng.choice(self._books)
        is_wild = rng.random() < self._wildness
        book.writers += 1
        book.is_wild |= is_wild
        if book.writers > 1 and rng.random() < 0.7 and not is_wild:
            book.writers -= 1
            free = [other for other in self._books if not other.writers]
            if not free:
                return
            book = rng.choice(free)
            book.writers += 1
        client = rng.choice(self._clients)
        await asyncio.sleep(rng.choice((0, 0, 0.01)) * rng.random())
        session = await self._open(book, client)
        if session is None:
            return
        for _ in range(rng.randint(1, 8)):
            act = rng.choices(
                (self._step, self._wrong, self._stream, self._again, self._take_over, self._delete),
                (20, 3, 3, 3, is_wild, 0.2 * is_wild),
            )[0]
            self.counts[act.__name__] += 1
            try:
                session = await act(book, client, session, is_wild) or session
            except HoldfastError as error:
                self._explained(book, error, is_wild)
                if isinstance(error, RIVALRY) and not session.pending:
                    session = await self._open(book, client)
            except TimeoutError:
                assert is_wild
            if session is None or not await self._settled(book, session):
                return

    async def _open(self, book, client, *, take_over=False):
        """Opens a session; returns None if it is deleted."""
        if book.is_over:
            return None
        book.openings += 1
        try:
            return await client.open_session(book.session_id, model=book.model, take_over=take_over)
        finally:
            book.openings -= 1

    def _explained(self, book, error, is_wild):
        self.counts[type(error).__name__] += 1
        has_rivals = book.writers > 1 or book.ended_at is not None
        if isinstance(error, RIVALRY) and has_rivals:
            return
        if isinstance(error, IN_DOUBT) and is_wild:
            return
        raise AssertionError(f"{book.session_id} got {error!r}, alone it would not") from error

    async def _settled(self, book, session):
        """Settles what is pending; returns whether the session goes on here."""
        for _ in range(10):
            pending = session.pending
            if not pending:
                return True
            try:
                replies = await session.settle()
            except RIVALRY as error:
                assert book.writers > 1 or book.ended_at is not None, error  # noqa: PT017
                return False
            except IN_DOUBT:
                continue
            for chunk, reply in zip(pending, replies, strict=True):
                book.answers(chunk.position, chunk.tokens, reply, shows_hash="hash" in reply.outputs)
            return True
        raise AssertionError(f"{session.pending} are not settled")

    # -- what callers do ----------------------------------------------------------------------------

    def _text(self):
        is_usual = self._rng.random() < 0.75
        return self._rng.randbytes(self._length if is_usual else self._rng.choice((1, 2, 3, 7, 40)))

    async def _step(self, book, _, session, is_wild):
        rng, tokens, options = self._rng, self._text(), {}
        if rng.random() < 0.3:
            options["position"] = session.position
        if rng.random() < 0.1:
            options["ack_level"] = "memory"
        options["outputs"] = "hash" if rng.random() < 0.85 else True
        if rng.random() < 0.05:
            options["state"] = True
        if is_wild and rng.random() < 0.4:
            options["timeout_s"] = rng.choice((0.001, 0.003, 0.01, 0.1, 2.0))
        start = session.position
        book.sends(start, tokens)
        given = np.frombuffer(tokens, np.uint8).astype(np.int64) if rng.random() < 0.1 else tokens
        work = session.step(given, **options)
        if is_wild and rng.random() < 0.4:
            self.counts["given up"] += 1
            reply = await asyncio.wait_for(work, rng.choice((0, 0.001, 0.01, 0.05)) * rng.random())
        else:
            reply = await work
        book.answers(start, tokens, reply)
        if options.get("state"):
            assert int(reply.state["s"]) == reply.outputs["hash"][-1]

    async def _wrong(self, book, _, session, is_wild):
        """Asks for what nobody gets; the session is none the worse for it."""
        position = session.position
        arguments, options = self._rng.choice(
            [
                ([np.array([5, 300])], {}),
                ([np.array([[1.0, 2.0]], np.float32)], {}),
                ([b"x"], {"outputs": "nothing"}),
                ([b"x"], {"ack_level": "replicated"}),
                ([b"x" * 5000], {}),
            ]
        )
        try:
            await session.step(*arguments, **options)
        except WRONG as error:
            assert not error.pending  # noqa: PT017
            self.counts["wrong"] += 1
        else:
            raise AssertionError(f"{arguments}, {options} were taken")
        assert (session.position, session.pending) == (position, ())

    async def _stream(self, book, _, session, is_wild):
        rng = self._rng
        size, tokens = rng.randint(1, 5), rng.randbytes(rng.randint(1, 30))
        first = start = session.position
        for offset in range(0, len(tokens), size):
            book.sends(first + offset, tokens[offset : offset + size])
        replies = session.stream(tokens, chunk=size, outputs="hash")
        async with contextlib.aclosing(replies):
            async for reply in replies:
                done = tokens[start - first :][: reply.token_count]
                book.answers(start, done, reply)
                start += len(done)
                if is_wild and rng.random() < 0.1:
                    break

    async def _again(self, book, _, session, is_wild):
        """Asks for the last reply once more."""
        position = max((one for one in book.answered if one < session.position), default=None)
        if position is None or position + len(book.answered[position][0]) != session.position:
            return
        tokens, hashes = book.answered[position]
        selection = self._rng.choice(("hash", True))
        reply = await session.step(tokens, position=position, outputs=selection)
        assert reply.replayed
        assert reply.position == position + len(tokens)
        assert hashes is None or reply.outputs["hash"].tolist() == hashes

    async def _take_over(self, book, client, _, is_wild):
        book.writers += 1
        return await self._open(book, client, take_over=True)

    async def _delete(self, book, _, session, is_wild):
        if book.openings:
            return
        book.writers += 1
        book.is_over = True
        ended_at = await session.delete()
        book.ended_at = ended_at if book.ended_at is None else min(ended_at, book.ended_at)


@pytest.mark.parametrize("seed", SEEDS)
async def test_each_caller_gets_what_it_would_have_had_alone(server, seed):
    rng = random.Random(seed)
    clients = [
        holdfast.AsyncClient(
            server.address,
            connections=rng.choice((1, 1, 3)),
            retry=holdfast.RetryPolicy(initial_s=0.005, max_s=0.05),
            timeout_s=20.0,
        )
        for _ in range(rng.choice((1, 1, 2)))
    ]
    total = Counter()
    try:
        async with asyncio.timeout(LIMIT_S):
            for number in range(3):
                mixture = Mixture(rng, clients, f"mixture-{seed}-{number}")
                await mixture.run()
                total += mixture.counts
        assert total["_step"]
        for client in clients:
            for batcher in itertools.chain(*client._steps._batchers.values()):
                left = list(batcher._waiting())
                assert not left
                assert not batcher._behind
                assert not batcher._queues
    finally:
        for client in clients:
            await client.close()


def test_a_judge_sees_what_is_wrong():
    """Lost, doubled and exchanged chunks are no history."""
    book = Book("s", "hash")
    for position, tokens in ((0, b"ab"), (0, b"xy"), (2, b"c"), (3, b"d")):
        book.sends(position, tokens)
    book.answered[2] = b"c", hashes_of(b"c", hash_of(b"ab"))
    book.judge(3, hash_of(b"abc"))
    book.judge(4, hash_of(b"abcd"))
    for end, tokens in ((3, b"xyc"), (2, b"ab"), (4, b"abcc"), (4, b"abdc"), (3, b"bac")):
        with pytest.raises(AssertionError):
            book.judge(end, hash_of(tokens))
