"""Holds what comes in against the contract of its model: requests, tokens, records. Pure."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import InvalidRequest, ModelMismatch, RecordCorrupt, ReplyTooLarge
from service.engine.asked import Asked, Needs, Selection
from service.engine.rules import MAX_KEPT_REPLY_BYTES
from service.model.contract import Contract, OutputSpec
from service.model.protocol import Model, Models
from service.store.record import Record

ALL_TENSORS = "*"
DEFAULT_TOP_K = 5

MAX_REMEMBERED = 1024
"""So many asks, each of one model, are remembered as checked."""

_ENCODING_BYTES = 64
"""Upper bound on what the edge adds around the numbers of a reply, and around each of its tensors."""


def validate(asked: Asked, model: Model) -> Needs:
    """Checks what chunks ask against the model of their sessions, before they share a batch with others.

    Returns:
        What they need, defaults and "*" filled in.

    Raises:
        ModelMismatch: The request names another model.
        InvalidRequest: The kind of tokens or the selection does not suit the model.
        ReplyTooLarge: The reply could not be kept for a retry.
    """
    if asked.selection is not None and asked.selection.tensors:
        _check_sort(asked, model)
        asked = asked._replace(selection=_named(asked.selection, model.contract))
    return _checked(asked, model)


@functools.lru_cache(MAX_REMEMBERED)
def _checked(asked: Asked, model: Model) -> Needs:
    """Checks what callers ask again and again.

    Only what passes is remembered, and only tensors by `_named` may come here: so it is as small as the
    model's own list of outputs.
    """
    _check_sort(asked, model)
    contract = model.contract
    selection = _complete(asked.selection, contract)
    size_bytes = reply_bytes(selection, contract, asked.token_count)
    if size_bytes > MAX_KEPT_REPLY_BYTES:
        raise ReplyTooLarge(
            f"the reply would have up to {size_bytes} bytes, at most {MAX_KEPT_REPLY_BYTES} are kept "
            "for a retry: send fewer tokens in a chunk or ask for fewer outputs",
            field="outputs",
        )
    return Needs(selection, *needed_outputs(contract, [selection]))


def needed_outputs(contract: Contract, selections: Iterable[Selection]) -> tuple[tuple[str, ...], int]:
    """Returns the outputs that completed selections take together; see `Needs`."""
    names: set[str] = set()
    for selection in selections:
        names.update(selection.tensors)
        if selection.top_k and contract.ranked is not None:
            names.add(contract.ranked.name)
        if selection.token_log_prob and contract.token_log_prob is not None:
            names.add(contract.token_log_prob.name)
        if selection.generates and not contract.texts:
            names.add(_drawn_from(contract).name)
    needed = [output for output in contract.outputs if output.name in names]
    return tuple(output.name for output in needed), sum(output.size_bytes for output in needed)


def _named(selection: Selection, contract: Contract) -> Selection:
    """Returns the selection with each tensor once, all of them the model's own; "*" is filled in."""
    every = {name: name for name in contract.outputs_by_name}
    if ALL_TENSORS in selection.tensors:
        return selection._replace(tensors=tuple(every))
    try:
        return selection._replace(tensors=tuple(dict.fromkeys(every[name] for name in selection.tensors)))
    except KeyError as unknown:
        raise InvalidRequest(
            f"the model has no output {unknown.args[0]!r}; it has {', '.join(every)}",
            field="outputs.tensors",
        ) from None


def largest_reply_bytes(asked: Asked, contract: Contract) -> int:
    """Returns an upper bound on the reply to chunks, also where the selection does not suit the model.

    Nothing of it is remembered: callers write what they like here, and it is a few additions.
    """
    selection = asked.selection or _complete(None, contract)
    if ALL_TENSORS in selection.tensors:
        selection = selection._replace(tensors=tuple(output.name for output in contract.outputs))
    return reply_bytes(selection, contract, asked.token_count)


def reply_bytes(selection: Selection, contract: Contract, token_count: int) -> int:
    """Returns an upper bound on the encoded size of a reply."""
    if selection.generates:  # of the last token only
        fed_back = contract.feedback.size_bytes if contract.feedback is not None else 0
        return 4 * _ENCODING_BYTES + 8 * (selection.top_k + 1) + fed_back
    per_token, fixed = 8 * selection.top_k + 4 * selection.token_log_prob, _ENCODING_BYTES
    if selection.tensors:
        names = set(selection.tensors)
        chosen = [output for output in contract.outputs if output.name in names]
        per_token += sum(output.size_bytes for output in chosen)
        fixed += sum(_tensor_overhead(output.name) for output in chosen)
    if selection.state:
        fixed += contract.state_bytes
        fixed += sum(_tensor_overhead(state.name) for state in contract.states)
    return fixed + token_count * per_token


def _tensor_overhead(name: str) -> int:
    return _ENCODING_BYTES + 4 * len(name)


def _check_sort(asked: Asked, model: Model) -> None:
    """Holds the model and the kind of tokens that chunks name against their model."""
    check_named(model, asked.model_name, asked.model_version)
    contract = model.contract
    vocabulary, width = contract.vocabulary, contract.input.width
    if vocabulary is None:
        if asked.kind != "features":
            raise InvalidRequest(
                f"the model has no vocabulary: send float32 features of width {width}", field="tokens"
            )
        if asked.width != width:
            raise InvalidRequest(
                f"features have width {asked.width}, the model takes {width}",
                field="tokens.features.shape",
            )
    elif asked.kind == "features":
        raise InvalidRequest("the model has a vocabulary: send text or ids, not features", field="tokens")
    elif asked.kind == "text" and vocabulary.kind != "bytes":
        raise InvalidRequest("the model's vocabulary is not bytes: send ids, not text", field="tokens.text")


def check_tokens(asked: Asked, tokens: NDArray[Any], contract: Contract) -> dict[int, InvalidRequest]:
    """Checks the values of tokens.

    Args:
        asked: Checked by `validate`.
        tokens: Of B rows, see `Rows.tokens`.
        contract: Of the model.

    Returns:
        Why rows cannot run, by row.
    """
    if asked.kind == "text":
        return {}
    if asked.kind == "features":
        is_right = np.isfinite(tokens).all(axis=2)
        for column, id_count in contract.id_columns:
            ids = tokens[..., column]
            is_right &= (ids >= 0) & (ids < id_count) & (ids == np.floor(ids))
    else:
        assert contract.vocabulary is not None, "bug: ids passed without a vocabulary"
        is_right = (tokens >= 0) & (tokens < contract.vocabulary.size)
    if is_right.all():
        return {}
    wrong = {int(row): int(is_right[row].argmin()) for row in np.flatnonzero(~is_right.all(axis=1))}
    return {row: _wrong_token(asked, tokens[row], place, contract) for row, place in wrong.items()}


def _wrong_token(asked: Asked, tokens: NDArray[Any], place: int, contract: Contract) -> InvalidRequest:
    if asked.kind == "features" or contract.vocabulary is None:
        for column, id_count in contract.id_columns:
            if (value := tokens[place][column]) not in range(id_count):
                return InvalidRequest(
                    f"column {column} of token {place} is {value:g}, expected an id 0..{id_count - 1}",
                    field="tokens.features.data",
                )
        return InvalidRequest(
            f"features of token {place} hold NaN or infinity", field="tokens.features.data"
        )
    return InvalidRequest(
        f"token {place} is {tokens[place]}, the vocabulary has ids 0..{contract.vocabulary.size - 1}",
        field=f"tokens.ids.values[{place}]",
    )


def _complete(selection: Selection | None, contract: Contract) -> Selection:
    if selection is None:
        if contract.ranked is not None:
            return Selection(top_k=min(DEFAULT_TOP_K, math.prod(contract.ranked.shape)))
        return Selection(tensors=tuple(output.name for output in contract.outputs))
    if selection.generates:
        check_generates(contract)
    if selection.top_k:
        _check_top_k(selection.top_k, contract)
    if selection.token_log_prob and contract.token_log_prob is None:
        raise InvalidRequest("the model has no token_log_prob output", field="outputs.token_log_prob")
    return selection


def check_generates(contract: Contract) -> None:
    """Makes sure that a model can be fed with what follows from what it gave.

    Raises:
        InvalidRequest: It cannot.
    """
    if contract.feedback is not None or contract.texts:
        return
    if contract.input.kind == "features":
        raise InvalidRequest(
            "the model takes features, and its contract names no output that can be its next input: write "
            'feedback = "OUTPUT" into contract.toml',
            field="model",
        )
    ranked = contract.ranked
    if ranked is None:
        raise InvalidRequest(
            "the model has no output of role logits, probs or log_probs to draw tokens from", field="model"
        )
    if ranked.labels or contract.vocabulary is None or math.prod(ranked.shape) != contract.vocabulary.size:
        raise InvalidRequest(
            f"the output {ranked.name!r} weighs {math.prod(ranked.shape)} classes, and these are not the "
            "tokens that the model takes",
            field="model",
        )


def _drawn_from(contract: Contract) -> OutputSpec:
    """Returns the output from which what follows is made."""
    output = contract.feedback or contract.ranked
    assert output is not None, "bug: a model generates that cannot"
    return output


def _check_top_k(top_k: int, contract: Contract) -> None:
    if contract.ranked is None:
        raise InvalidRequest(
            "the model has no output of role logits, probs or log_probs to rank", field="outputs.top_k"
        )
    size = math.prod(contract.ranked.shape)
    if not 0 <= top_k <= size:
        raise InvalidRequest(f"top_k is {top_k}, expected 0..{size}", field="outputs.top_k")


def served_model(models: Models, record: Record) -> Model:
    """Returns the model that a live record belongs to.

    Raises:
        ModelMismatch: It is not served here.
        RecordCorrupt: The state has not the size that the model's has.
    """
    model = models.find_fingerprint(record.fingerprint)
    if model is None:
        raise ModelMismatch(
            f"the session runs on the model with fingerprint {record.fingerprint.hex()}, which this "
            "server does not have"
        )
    if len(record.state) != model.contract.state_bytes:
        raise RecordCorrupt(
            f"the record holds {len(record.state)} bytes of state, {model.name} version "
            f"{model.version} has {model.contract.state_bytes}"
        )
    return model


def check_named(model: Model, name: str, version: int) -> None:
    """Holds the model of a session against what a request names.

    Args:
        model: The session's.
        name: As in the request; "" is any.
        version: As in the request; 0 is any.

    Raises:
        ModelMismatch: The request names another one.
    """
    if name in ("", model.name) and version in (0, model.version):
        return
    asked = f"{name or model.name}{f' version {version}' if version else ', any version'}"
    raise ModelMismatch(
        f"the session runs on {model.name} version {model.version}, the request names {asked}",
        field="model",
    )
