"""A generation as nobody serves it: one row of a network, run by onnxruntime token by token."""

import numpy as np

from service.engine.cache import join_rows, split_rows
from service.engine.sampling import Options
from service.model.contract import opening_rows
from service.model.loading import load_model
from tests.support import sampling_oracle
from tests.support.oracle import MODELS


class Loop:
    """A session of a model.

    Attributes:
        tokens: What it has consumed: bytes, or rows of ids or features.
    """

    def __init__(self, name=None, path=None):
        path = MODELS / name / "1" / "model.onnx" if path is None else path
        self.model = load_model(path, name="", version=1)
        self.contract = self.model.contract
        self.states = opening_rows(self.contract, 1)
        self.position = 0
        self.outputs = None

    def apply(self, tokens):
        """Takes tokens, (k,) or (k, width), one by one."""
        found = np.frombuffer(tokens, np.uint8) if isinstance(tokens, bytes) else np.asarray(tokens)
        for token in found:
            run = token.astype(self.contract.input.dtype)[np.newaxis, np.newaxis]
            self.outputs, states = self.model.run(run, self.states)
            self.states = split_rows(self.contract, join_rows(self.contract, states))
            self.position += 1

    def logits(self):
        """Returns what weighs the next token."""
        if self.contract.texts:
            return self.model.settled(self.states)[0].reshape(-1)
        return self.outputs[self.contract.ranked.name][-1, 0].reshape(-1)

    def generate(
        self,
        max_tokens,
        prompt=b"",
        *,
        seed=0,
        said=(),
        stop_ids=(),
        stop_texts=(),
        min_tokens=0,
        **options,
    ):
        """Returns the tokens, (id, text, log-probability), as a server should."""
        given = {name: np.float32(value) for name, value in options.items() if name != "top_k"}
        chosen = Options(**{name: float(value) for name, value in given.items()})
        chosen = chosen._replace(top_k=options.get("top_k", 0))
        if len(prompt):
            self.apply(prompt)
        known = set(said) if self.contract.texts else {*said, *prompt}
        unwritable = {number for number, text in enumerate(self.contract.texts) if not text}
        tokens, emitted = [], b""
        while len(tokens) < max_tokens:
            is_early = len(tokens) < min_tokens
            excluded = unwritable - set(stop_ids) | (set(stop_ids) if is_early else set())
            number, log_prob = sampling_oracle.draw(
                self.logits(), chosen, seed, self.position, known, excluded
            )
            if number in stop_ids:
                break
            text = self.contract.texts[number] if self.contract.texts else bytes([number])
            self.apply(text)
            known.add(number)
            tokens.append((number, text, log_prob))
            emitted += text
            if len(tokens) >= min_tokens and any(map(emitted.endswith, stop_texts)):
                break
        return tokens
