"""Networks as people have them, small and with random weights: a session gets what its own tokens say."""

import numpy as np
from onnx import TensorProto

from tests.support.step_graphs import HIDDEN, WIDTH, Builder, cell, elman, over_time, recurrent, scan


def plain(**extra):
    def step(net, x, h):
        after = elman(net, x, h)
        return after, after

    return cell(step, **extra)


def layer_norm():
    def step(net, x, h):
        after = net.add(
            "LayerNormalization", elman(net, x, h), net.const(np.ones(HIDDEN)), net.normal(HIDDEN)
        )
        return net.add("Tanh", after), after

    return cell(step)


def scanned(**extra):
    return over_time(scan, **extra)


def float64():
    def step(net, x, h):
        wide = net.add("Cast", x, to=TensorProto.DOUBLE)
        total = net.add("Add", net.add("MatMul", wide, net.normal(WIDTH, HIDDEN, dtype=np.float64)),
                        net.add("MatMul", h, net.normal(HIDDEN, HIDDEN, dtype=np.float64)))  # fmt: skip
        after = net.add("Tanh", total)
        return after, net.add("Cast", after, to=TensorProto.FLOAT)

    return cell(step, dtype="float64")


def float16(*, inside_only=False):
    def step(net, x, h):
        x, h = (net.add("Cast", one, to=TensorProto.FLOAT16) for one in (x, h))
        total = net.add("Add", net.add("MatMul", x, net.normal(WIDTH, HIDDEN, dtype=np.float16)),
                        net.add("MatMul", h, net.normal(HIDDEN, HIDDEN, dtype=np.float16)))  # fmt: skip
        after = net.add("Tanh", total)
        wide = net.add("Cast", after, to=TensorProto.FLOAT)
        return wide if inside_only else after, wide

    return cell(step, dtype="float32" if inside_only else "float16")


def attention():
    """A ring of the last 6 keys and values, and an int64 counter that says where the next one goes."""
    net = Builder()
    for name in ("keys", "values"):
        net.state(name, 6, HIDDEN)
    net.state("count", dtype="int64")
    place = net.add("Mod", "count", net.const(6, np.int64))
    hot = net.add("OneHot", place, net.const(6, np.int64), net.const([0, 1]))
    mask = net.add("Unsqueeze", hot, net.const([2], np.int64))
    after = {}
    for name in ("keys", "values"):
        fresh = net.add(
            "Unsqueeze", net.add("MatMul", "x", net.normal(WIDTH, HIDDEN)), net.const([1], np.int64)
        )
        kept = net.add("Mul", name, net.add("Sub", net.const(1), mask))
        after[name] = net.add("Add", kept, net.add("Mul", fresh, mask))
        net.follows(name, after[name])
    count = net.add("Add", "count", net.const(1, np.int64))
    net.follows("count", count)
    query = net.add(
        "Unsqueeze", net.add("MatMul", "x", net.normal(WIDTH, HIDDEN)), net.const([2], np.int64)
    )
    scores = net.add("Squeeze", net.add("MatMul", after["keys"], query), net.const([2], np.int64))
    seen = net.add(
        "Less", net.const(np.arange(6), np.int64), net.add("Unsqueeze", count, net.const([1], np.int64))
    )
    scores = net.add("Where", seen, scores, net.const(-1e9))
    weights = net.add("Unsqueeze", net.add("Softmax", scores, axis=1), net.const([1], np.int64))
    net.output(
        net.add("Squeeze", net.add("MatMul", weights, after["values"]), net.const([1], np.int64)), HIDDEN
    )
    return net.bytes()


def causal_convolution(*, time=True):
    """The last two tokens are the state; nothing is padded."""
    net = Builder(time=time)
    net.state("cache", WIDTH, 2)
    if time:
        fresh = net.add("Transpose", "x", perm=[1, 2, 0])
    else:
        fresh = net.add("Unsqueeze", "x", net.const([2], np.int64))
    window = net.add("Concat", "cache", fresh, axis=2)
    ends = [net.const([at], np.int64) for at in (-2, 1 << 40, 2)]
    net.follows("cache", net.add("Slice", window, *ends))
    out = net.add("Conv", window, net.normal(HIDDEN, WIDTH, 3), kernel_shape=[3])
    out = (
        net.add("Transpose", out, perm=[2, 0, 1])
        if time
        else net.add("Squeeze", out, net.const([2], np.int64))
    )
    net.output(out, HIDDEN)
    return net.bytes()


def summed_over_time():
    """y_t = h + x_1 + ... + x_t, by CumSum: a parallel scan, whose sums are rounded otherwise by chunk."""
    return over_time(lambda net, x, h: net.add("Add", net.add("CumSum", x, net.const(0, np.int64)), h))


def quantised_once():
    """Scales are constants, as static quantisation leaves them."""

    def step(net, x, h):
        def quantised(value, scale):
            stepped = net.add("QuantizeLinear", value, net.const(scale), net.const(0, np.int8))
            return net.add("DequantizeLinear", stepped, net.const(scale), net.const(0, np.int8))

        weights = [quantised(net.normal(size, HIDDEN), 0.01) for size in (WIDTH, HIDDEN)]
        total = net.add("Add", net.add("MatMul", quantised(x, 0.05), weights[0]),
                        net.add("MatMul", quantised(h, 1 / 127), weights[1]))  # fmt: skip
        after = net.add("Tanh", total)
        return after, quantised(after, 1 / 127)

    return cell(step)


def quantised_by_row():
    """Dynamic quantisation that is harmless: a scale for each row."""

    def step(net, x, h):
        most = net.add("ReduceMax", net.add("Abs", x), net.const([1], np.int64), keepdims=1)
        scale = net.add("Div", net.add("Add", most, net.const(1e-6)), net.const(127))
        rounded = net.add("Mul", net.add("Round", net.add("Div", x, scale)), scale)
        after = elman(net, rounded, h)
        return after, after

    return cell(step)


def spiking():
    """Adds up, fires above 1 and falls back: a threshold that rounding can cross."""

    def step(net, x, h):
        total = net.add(
            "Add", net.add("Mul", h, net.const(0.9)), net.add("MatMul", x, net.normal(WIDTH, HIDDEN))
        )
        fires = net.add("Cast", net.add("Greater", total, net.const(1)), to=TensorProto.FLOAT)
        return net.add("Sub", total, fires), fires

    return cell(step)


def oscillator(gain=300.0):
    """Its state is a phase, summed over a chunk and then added: rounded by chunk, and amplified."""
    net = Builder(time=True)
    h = net.state("h", WIDTH)
    phase = net.add("Add", net.add("CumSum", "x", net.const(0, np.int64)), h)
    net.follows("h", net.add("Gather", phase, net.const(-1, np.int64), axis=0))
    net.output(net.add("Sin", net.add("Mul", phase, net.const(gain))), WIDTH)
    return net.bytes()


def rounded_sum(width=72):
    """A sum that is rounded otherwise by chunk, then cut to a digit: now and then to the next one."""
    net = Builder(time=True, width=width)
    h = net.state("h", width)
    total = net.add("Add", net.add("CumSum", "x", net.const(0, np.int64)), h)
    net.follows("h", net.add("Gather", total, net.const(-1, np.int64), axis=0))
    thousandths = net.add("Round", net.add("Mul", total, net.const(1000)))
    net.output(net.add("Mod", thousandths, net.const(10), fmod=1), width)
    return net.bytes()


def counting_bool():
    """States of bool and int32, and an int64 output that is an argmax."""
    net = Builder(vocabulary=50)
    net.state("seen", 50, dtype="bool")
    net.state("count", dtype="int32")
    hot = net.add(
        "Equal", net.add("Unsqueeze", "x", net.const([1], np.int64)), net.const(np.arange(50), np.int64)
    )
    seen = net.add("Or", "seen", hot)
    net.follows("seen", seen)
    net.follows("count", net.add("Add", "count", net.const(1, np.int32)))
    scores = net.add("MatMul", net.add("Cast", seen, to=TensorProto.FLOAT), net.normal(50, 9))
    net.output(net.add("ArgMax", scores, axis=1, keepdims=0), dtype="int64")
    net.output(scores, 9, name="scores")
    return net.bytes()


def large_vocabulary(size=20_000):
    net = Builder(vocabulary=size, time=True)
    h = net.state("h", HIDDEN)
    net.width = HIDDEN
    every = scan(net, net.add("Gather", net.normal(size, HIDDEN), "x"), h)
    net.follows("h", net.add("Gather", every, net.const(-1, np.int64), axis=0))
    net.output(net.add("MatMul", every, net.normal(HIDDEN, size)), size, role="logits", name="logits")
    return net.bytes()


def last_axis():
    """The batch is the last axis of the state."""
    net = Builder()
    net.state("h", 2, HIDDEN, axis=2)
    turned = net.add("Transpose", "h", perm=[2, 0, 1])
    after = net.add("Add", turned, net.add("Unsqueeze", "x", net.const([1], np.int64)))
    net.follows("h", net.add("Transpose", net.add("Tanh", after), perm=[1, 2, 0]))
    net.output(net.add("ReduceSum", after, net.const([1], np.int64), keepdims=0), HIDDEN)
    return net.bytes()


def running_mean():
    """The state is a sum and a count, both float; at first the count is 0."""
    net = Builder(time=False)
    net.state("sum", WIDTH)
    net.state("count", 1)
    total, count = net.add("Add", "sum", "x"), net.add("Add", "count", net.const(1))
    net.follows("sum", total)
    net.follows("count", count)
    net.output(net.add("Div", total, count), WIDTH)
    return net.bytes()


def float_ids():
    """Features that are ids: any float beyond 0 and 1 is an index out of range."""
    net = Builder(width=1)
    net.state("h", HIDDEN)
    index = net.add("Squeeze", net.add("Cast", "x", to=TensorProto.INT64), net.const([1], np.int64))
    after = net.add("Tanh", net.add("Add", "h", net.add("Gather", net.normal(2, HIDDEN), index)))
    net.follows("h", after)
    net.output(after, HIDDEN)
    return net.bytes()


def weighted_exponentials():
    """As in RWKV: a numerator and a denominator under a running maximum."""
    net = Builder()
    for name in ("top", "bottom", "peak"):
        net.state(name, HIDDEN)
    key, value = (net.add("MatMul", "x", net.normal(WIDTH, HIDDEN)) for _ in range(2))
    peak = net.add("Max", "peak", key)
    fade, gain = (net.add("Exp", net.add("Sub", one, peak)) for one in ("peak", key))
    top = net.add("Add", net.add("Mul", "top", fade), net.add("Mul", value, gain))
    bottom = net.add("Add", net.add("Mul", "bottom", fade), gain)
    for name, after in (("top", top), ("bottom", bottom), ("peak", peak)):
        net.follows(name, after)
    net.output(net.add("Div", top, bottom), HIDDEN)
    return net.bytes()


def switched(*, honest=True):
    """Its second output has a switch; a dishonest one switches the state off as well."""
    net = Builder()
    h = net.state("h", HIDDEN)
    after = elman(net, "x", h)
    wanted = net.add("Cast", "wanted", to=TensorProto.FLOAT)
    net.switches.append("wanted")
    net.follows("h", after if honest else net.add("Mul", after, wanted))
    net.output(after, HIDDEN)
    net.output(net.add("Mul", after, wanted), HIDDEN, name="extra", switch="wanted")
    return net.bytes()


def four_bits():
    """Weights of 4 bits, as onnxruntime's quantiser writes them."""

    def step(net, x, h):
        joined = net.add("Concat", x, h, axis=1)
        packed = net.const(net.rng.integers(0, 256, (HIDDEN, 1, 8)), np.uint8)
        scales = net.const(np.full(HIDDEN, 0.1))
        product = net.add(
            "MatMulNBits",
            joined,
            packed,
            scales,
            domain="com.microsoft",
            K=16,
            N=HIDDEN,
            bits=4,
            block_size=16,
        )
        after = net.add("Tanh", product)
        return after, after

    return cell(step)


GOOD = {
    "elman": plain,
    "rnn": lambda: recurrent("RNN"),
    "gru": lambda: recurrent("GRU"),
    "lstm": recurrent,
    "lstm, two layers": lambda: recurrent(layers=2),
    "gru, one token a run": lambda: recurrent("GRU", time=False),
    "gru of ids": lambda: recurrent("GRU", vocabulary=300),
    "scan": scanned,
    "layer normalisation": layer_norm,
    "float64": float64,
    "float16": float16,
    "float16 inside": lambda: float16(inside_only=True),
    "attention": attention,
    "causal convolution": causal_convolution,
    "causal convolution, one token a run": lambda: causal_convolution(time=False),
    "cumulative sum": summed_over_time,
    "static quantisation": quantised_once,
    "quantisation by row": quantised_by_row,
    "spiking": spiking,
    "oscillator": oscillator,
    "rounded sum": rounded_sum,
    "rounded sum, wide": lambda: rounded_sum(192),
    "bool and int32 states": counting_bool,
    "large vocabulary": large_vocabulary,
    "batch axis last": last_axis,
    "running mean": running_mean,
    "features that are ids": float_ids,
    "weighted exponentials": weighted_exponentials,
    "switch": switched,
    "weights of 4 bits": four_bits,
}  # fmt: skip
