"""Text into a network over subwords, over gRPC, through a SIGKILL in the middle of a word.

What comes back is what the package `tokenizers` and onnxruntime give the whole text, without a break.
"""

import itertools

import numpy as np
import onnxruntime as ort
import pytest

import holdfast
from tests.support.server import ServerProcess
from tests.support.subword_models import HIDDEN, SIZE, TEXT, byte_pairs, package, put_words_model

MODEL = "words"
DATA = TEXT.encode() + b"odd bytes \xff\xfe\xc3 and <|start|> then \xe6\x97"
CUTS = (0, 1, 5, 31, 66, 90, 91, 130, 170, len(TEXT.encode()) + 12, len(DATA))
KILLED_AFTER = 3
"""Chunks; the third one ends in the middle of a word."""

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Logits and log-probability after every byte, by the package and onnxruntime alone."""
    ids_of = package(byte_pairs())
    known = (
        TEXT + "odd bytes"
    )  # so far it is text; what follows is encoded word by word, and odd bytes by hand
    blank = [letter.isspace() for letter in known]
    ends = [place for place in range(1, len(known)) if blank[place] and not blank[place - 1]]
    pieces = [
        (len(known[:last].encode()), ids_of(known[first:last]))
        for first, last in itertools.pairwise([0, *ends])
    ]
    start = len(known.encode())
    pieces.append((start, ids_of(" bytes")))
    letters = {byte: ids_of_letter(byte) for byte in (0xFF, 0xFE, 0xC3)}
    pieces.append((start + 4, [*ids_of(" "), letters[0xFF], letters[0xFE], letters[0xC3]]))
    for word in (" and", " <|start|>", " then"):
        pieces.append((pieces[-1][0] + len(word), ids_of(word)))
    folder = tmp_path_factory.mktemp("oracle")
    session = ort.InferenceSession(put_words_model(folder).read_bytes())
    ids = np.array([[0], *([entry] for _, piece in pieces for entry in piece)])
    logits, log_probs, _ = session.run(None, {"token": ids, "h": np.zeros((1, HIDDEN), np.float32)})
    every, sums, count = np.empty((len(DATA), SIZE), np.float32), np.zeros(len(DATA), np.float32), 0
    ended = dict(pieces)
    for byte in range(len(DATA)):
        more = len(ended.get(byte, ()))
        sums[byte] = log_probs[count + 1 : count + 1 + more, 0].sum()
        count += more
        every[byte] = logits[count, 0]
    return every, sums


def ids_of_letter(byte):
    """The id of one byte: ByteLevel writes bytes from 0xae on as the character of that number."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(byte_pairs()).token_to_id(chr(byte))


@pytest.fixture(scope="module")
def found():
    return []


@pytest.fixture(scope="module")
def client(tmp_path_factory, found):
    """A client of the second server of a folder; the first one was killed in the middle of a word."""
    folder = tmp_path_factory.mktemp("words")
    put_words_model(folder / "models" / MODEL / "1")
    flags = ("--models", str(folder / "models"))
    with ServerProcess(folder / "data", *flags) as server:
        with holdfast.Client(server.address) as client:
            found += step(client.open_session("text", model=MODEL), CUTS[: KILLED_AFTER + 1])
        server.kill()
    with ServerProcess(folder / "data", *flags) as server, holdfast.Client(server.address) as client:
        yield client


def step(session, cuts):
    return [
        session.step(DATA[first:last], position=first, top_k=3, token_log_prob=True, outputs="logits")
        for first, last in itertools.pairwise(cuts)
    ]


@pytest.fixture(scope="module")
def replies(client, found):
    return found + step(client.open_session("text"), CUTS[KILLED_AFTER:])


def test_a_text_in_chunks_gives_what_the_whole_text_gives(replies, expected):
    logits, log_probs = expected
    given = np.concatenate([reply.outputs["logits"] for reply in replies])
    np.testing.assert_allclose(given, logits, rtol=0, atol=TOLERANCE)
    given = np.concatenate([reply.token_log_probs for reply in replies])
    np.testing.assert_allclose(given, log_probs, rtol=0, atol=TOLERANCE)


def test_candidates_have_texts(client, replies, expected):
    labels = holdfast.labels_of(client.get_model(MODEL))
    assert len(labels) == SIZE
    given = [row for reply in replies for row in reply.candidates(labels)]
    for row, logits in zip(given, expected[0], strict=True):
        weights = np.exp(logits - logits.max())
        best = weights.argsort()[::-1][:3]
        assert [label for label, _ in row] == [labels[entry] for entry in best]
        np.testing.assert_allclose([p for _, p in row], weights[best] / weights.sum(), atol=TOLERANCE)


def test_a_repetition_gets_the_reply_it_had(client, replies):
    session = client.open_session("repeated", model=MODEL)
    first, again = (session.step(DATA[:40], position=0, top_k=2) for _ in range(2))
    assert (first.top, again.replayed) == (again.top, True)


def test_the_unfinished_piece_is_in_the_state_and_a_session_goes_on_from_it(client, replies, expected):
    cut = CUTS[3]
    rest = slice(cut, cut + 40)
    session = client.open_session(model=MODEL)
    state = session.step(DATA[:cut], state=True).state
    held = DATA[DATA[:cut].rindex(b" ") : cut]
    assert bytes(state["piece"][8 : 8 + state["piece"][4]]) == held
    other = client.open_session(model=MODEL, initial_state=dict(state))
    given = other.step(DATA[rest], outputs="logits").outputs["logits"]
    np.testing.assert_allclose(given, expected[0][rest], rtol=0, atol=TOLERANCE)


def test_rows_of_a_batch_get_what_each_would_alone(client):
    texts = [b"in the list of ", b"items returned:", "日本語 éé the".encode()[:15]]
    ids = [f"row-{number}" for number in range(len(texts))]
    client.open_batch(MODEL, ids)
    together = client.step_batch(MODEL, ids, np.array([list(text) for text in texts]), outputs="logits")
    for number, text in enumerate(texts):
        alone = client.open_session(model=MODEL).step(text, outputs="logits").outputs["logits"]
        np.testing.assert_allclose(together.outputs["logits"][number], alone, rtol=0, atol=TOLERANCE)
