"""Whether a network can be a step at all.

Its weights are finite, nothing in it looks ahead, one state goes in and comes out, the same gives the same.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model_export.export_error import ExportError
from model_export.step import Part, Step

CLOSE, CLOSE_FLOAT16 = 1e-4, 1e-2
"""Rows beside others, and chunks, may differ by rounding: products are added up in another order."""


def check_parts(module: nn.Module) -> None:
    """Refuses what no run is needed to see.

    Raises:
        ExportError: A weight is not finite, or a part reads ahead or mixes rows.
    """
    for name, weight in module.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            count = int((~torch.isfinite(weight)).sum())
            raise ExportError(
                f"weight {name} has {count} values that are not finite (of {weight.numel()}): the training "
                "diverged; export an earlier checkpoint"
            )
        if weight.dtype in (torch.float16, torch.bfloat16):
            raise ExportError(
                f"weight {name} is {_dtype(weight)}, in which onnxruntime does not compute on CPUs (it "
                "may even crash): export network.float(); tokens may be float16, with x.float() in forward"
            )
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and torch.isnan(buffer).any():
            raise ExportError(
                f"buffer {name} has values that are not a number; export an earlier checkpoint"
            )
    for name, part in module.named_modules():
        where = f"{name or 'the module'} ({type(part).__name__})"
        if isinstance(part, nn.RNNBase) and part.bidirectional:
            raise ExportError(
                f"{where} is bidirectional: it reads a stream from its end, which has not come yet; "
                "train it with bidirectional=False"
            )
        is_norm = isinstance(part, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 -- the family's name
        if is_norm and part.running_mean is None:
            raise ExportError(
                f"{where} has track_running_stats=False, so it mixes the rows of a batch, which are "
                "sessions of others; train it with running statistics, or use LayerNorm"
            )


@torch.inference_mode()
def check_runs(step: Step) -> None:
    """Runs the example and refuses what is not a step.

    Raises:
        ExportError: It is random, keeps a state in itself, or the next state does not fit the state.
    """
    example = step.example
    before = {name: value.clone() for name, value in step.module.state_dict().items()}
    first = _run(step, example.states)
    names = [f"state {number}" for number in range(len(example.states))]
    for name, state, after in zip(names, example.states, first[1], strict=True):
        _check_state(name, state, after)
    second = _run(step, first[1])
    for name, value in step.module.state_dict().items():
        if not torch.equal(value, before[name]) and not value.isnan().any():
            raise ExportError(
                f"{name} of the network changes while it runs: a state that it keeps in itself is lost "
                "between requests; take it as part of `state` and return it"
            )
    if not _equal(first, _run(step, example.states)) or not _equal(second, _run(step, first[1])):
        raise ExportError(
            "the network gives something else for the same token and state: it keeps a state in itself; "
            "take it as part of `state` and return it"
        )
    if not _equal(first, _run(step, example.states, seed=1)):
        raise ExportError(
            "the network draws random numbers (dropout that is always on, noise): a retry would give "
            "something else; use dropout of nn.Dropout, which is off in evaluation, and no noise"
        )
    for number, output in enumerate(first[0]):
        if output.is_floating_point() and torch.isnan(output).any():
            raise ExportError(
                f"output {number} is not a number for the example; give one of what the network takes"
            )


@torch.inference_mode()
def check_states_matter(
    step: Step, parts: Sequence[Part], tokens: Sequence[Sequence[Tensor]], session: Sequence[Tensor]
) -> None:
    """Refuses a network that does not look at a state that it is given.

    Args:
        step: The network.
        parts: Its states.
        tokens: Of some steps; the state is changed before the last.
        session: The session inputs.

    Raises:
        ExportError: Changing a state changes nothing.
    """
    states = step.example.states
    for token in tokens[:-1]:
        _, states = step(token, states, session)
    expected = step(tokens[-1], states, session)
    generator = torch.Generator().manual_seed(5)
    for number, (part, state) in enumerate(zip(parts, states, strict=True)):
        if not state.is_floating_point():
            continue
        noise = torch.randn(state.shape, generator=generator).to(state.dtype)
        for scale in (1.0, 100.0):
            changed = [*states[:number], state + scale * noise, *states[number + 1 :]]
            if not _equal(expected, step(tokens[-1], changed, session)):
                break
        else:
            raise ExportError(
                f"the network ignores state {part.name!r} {list(state.shape)}: whatever it is given, "
                "outputs and next states are the same; use the state that forward is given (a default of "
                "None, or zeros made inside, may hide it), or leave it out"
            )


def difference(left: Tensor, right: Tensor) -> float:
    """Returns the largest difference, relative above magnitude 1; infinite if only one is finite."""
    if left.shape != right.shape:
        return math.inf
    if left.numel() == 0:
        return 0.0
    ours, theirs = left.double(), right.double()
    apart = (ours - theirs).abs() / theirs.abs().clamp(min=1.0)
    apart = torch.where(ours == theirs, torch.zeros_like(apart), apart)
    worst = float(apart.max())
    return worst if math.isfinite(worst) else math.inf


def same(found: float, like: Tensor) -> bool:
    """Tells whether a difference between tensors like this one is rounding."""
    return found <= (CLOSE_FLOAT16 if like.dtype == torch.float16 else CLOSE)


def short(error: BaseException) -> str:
    """Returns an error of a foreign library in one short line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 160 else f"{text[:157]}..."
    return f"{type(error).__name__}: {text}"


def _check_state(name: str, state: Tensor, after: Tensor) -> None:
    if state.dtype != after.dtype:
        raise ExportError(
            f"{name} is {_dtype(state)} and {_dtype(after)} after a step; return it as it was given, with "
            f".to(torch.{_dtype(state)})"
        )
    if state.shape == after.shape:
        return
    grows = state.dim() == after.dim() and all(
        now >= then for then, now in zip(state.shape, after.shape, strict=True)
    )
    advice = (
        "a state that grows has no end; keep the last n steps in a ring buffer, with a counter of the place"
        if grows
        else "return it in the shape it was given"
    )
    raise ExportError(f"{name} is {list(state.shape)} and {list(after.shape)} after a step: {advice}")


def _run(step: Step, states: Sequence[Tensor], seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        example = step.example
        try:
            outputs, after = step(example.tokens, states, example.given)
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"the network raises on its own example: {short(error)}; expected a call "
                "module(x, state) that returns (y, state)"
            ) from error
        return [part.clone() for part in outputs], [part.clone() for part in after]


def _equal(left: tuple[list[Tensor], list[Tensor]], right: tuple[list[Tensor], list[Tensor]]) -> bool:
    pairs = zip((*left[0], *left[1]), (*right[0], *right[1]), strict=True)
    return all(torch.equal(torch.nan_to_num(one), torch.nan_to_num(two)) for one, two in pairs)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
