"""Networks that give a session something else beside others, in other chunks, or the next time."""

import numpy as np
from onnx import TensorProto

from tests.support.step_graphs import HIDDEN, WIDTH, Builder, cell, elman, over_time, recurrent, scan


def beside(change, **extra):
    """An Elman cell whose x goes through `change(net, x)` first."""

    def step(net, x, h):
        after = elman(net, change(net, x), h)
        return after, after

    return cell(step, **extra)


def less_mean(net, x, axis=0):
    return net.add("Sub", x, net.add("ReduceMean", x, net.const([axis], np.int64), keepdims=1))


def in_training(net, x):
    """onnxruntime keeps the running mean of such a node from run to run."""
    moments = [net.const(np.full(WIDTH, value)) for value in (1, 0, 0, 1)]
    return net.add("BatchNormalization", x, *moments, count=3, training_mode=1)[0]


def quantised(net, x):
    stepped, scale, zero = net.add("DynamicQuantizeLinear", x, count=3)
    return net.add("DequantizeLinear", stepped, scale, zero)


def quantised_product(net, x):
    weights = net.const(net.rng.integers(-127, 128, (WIDTH, WIDTH)), np.int8)
    return net.add(
        "DynamicQuantizeMatMul", x, weights, net.const(0.01), net.const(0, np.int8), domain="com.microsoft"
    )


def sorted_over_batch(net, x):
    """As many rows as there are, by value."""
    count = net.add("Slice", net.add("Shape", x), *(net.const([at], np.int64) for at in (0, 1)))
    return net.add("TopK", x, count, count=2, axis=0)[0]


def when_rows(limit):
    """Wrong only in batches of at least so many rows."""

    def change(net, x):
        rows = net.add("Gather", net.add("Shape", x), net.const(0, np.int64))
        many = net.add(
            "Cast", net.add("GreaterOrEqual", rows, net.const(limit, np.int64)), to=TensorProto.FLOAT
        )
        return net.add("Add", x, many)

    return change


def when_loud(net, x):
    """Wrong only beside values above 100."""
    most = net.add("ReduceMax", net.add("Abs", x), keepdims=0)
    loud = net.add("Cast", net.add("Greater", most, net.const(100)), to=TensorProto.FLOAT)
    return net.add("Add", x, loud)


def when_infinite(net, x):
    """Squares overflow beside 1e30, and the mean of the batch is then no number."""
    mean = net.add("ReduceMean", net.add("Mul", x, x), keepdims=0)
    return net.add("Add", x, net.add("Mul", mean, net.const(0)))


def summed(net, x):
    return net.add("CumSum", x, net.const(0, np.int64))


def shared(net, x):
    return net.add("Softmax", x, axis=0)


ROWS = {
    "mean of the batch": (less_mean, "ReduceMean"),
    "softmax over the batch": (shared, "Softmax"),
    "sum over the batch": (summed, "CumSum"),
    "sorted over the batch": (sorted_over_batch, "TopK"),
    "dynamic quantisation": (quantised, "DynamicQuantizeLinear"),
    "dynamic quantisation of a product": (quantised_product, "DynamicQuantizeMatMul"),
    "from 3 rows on": (when_rows(3), "no operator"),
    "from 40 rows on": (when_rows(40), "no operator"),
    "beside loud values": (when_loud, "ReduceMax"),
    "beside what overflows": (when_infinite, "ReduceMean"),
}
"""Name -> what becomes of the tokens of a batch, and the operator named as the likely cause."""


def looking_ahead(**extra):
    """A convolution over time padded on both sides."""
    net = Builder(time=True)
    h = net.state("h", HIDDEN)
    turned = net.add("Transpose", "x", perm=[1, 2, 0])
    seen = net.add("Conv", turned, net.normal(WIDTH, WIDTH, 3), kernel_shape=[3], pads=[1, 1])
    every = scan(net, net.add("Transpose", seen, perm=[2, 0, 1]), h)
    net.output(every, HIDDEN)
    net.follows("h", net.add("Gather", every, net.const(-1, np.int64), axis=0))
    return net.bytes(**extra)


def when_tokens(limit):
    """Wrong only in chunks of at least so many tokens."""

    def change(net, x):
        tokens = net.add("Gather", net.add("Shape", x), net.const(0, np.int64))
        many = net.add(
            "Cast", net.add("GreaterOrEqual", tokens, net.const(limit, np.int64)), to=TensorProto.FLOAT
        )
        return net.add("Add", x, many)

    return change


def within_a_token(net, x):
    """Reads the values of each token in both directions, which is not ahead, and counts its tokens."""
    values = net.add(
        "Unsqueeze", net.add("Reshape", x, net.const([-1, WIDTH], np.int64)), net.const([2], np.int64)
    )
    weights = [net.normal(2, 3, size) for size in (1, 1)]
    turned = net.add("Transpose", values, perm=[1, 0, 2])
    both = net.add("GRU", turned, *weights, count=2, hidden_size=1, direction="bidirectional")[0]
    read = net.add(
        "Transpose", net.add("ReduceSum", both, net.const([1, 3], np.int64), keepdims=0), perm=[1, 0]
    )
    return when_tokens(3)(net, net.add("Reshape", read, net.add("Shape", x)))


def of_the_last_token(direction):
    """A GRU with one output for all tokens of a run."""

    def make(**extra):
        net = Builder(time=True)
        h = net.state("h", HIDDEN)
        weights = [net.normal(1, 3 * HIDDEN, size) for size in (WIDTH, HIDDEN)]
        before = net.add("Unsqueeze", h, net.const([0], np.int64))
        after = net.add(
            "GRU", "x", *weights, "", "", before, count=2, hidden_size=HIDDEN, direction=direction
        )[1]
        after = net.add("Squeeze", after, net.const([0], np.int64))
        net.follows("h", after)
        net.output(after, HIDDEN, is_last=True)
        return net.bytes(**extra)

    return make


def in_time(change, **extra):
    """A scanned Elman cell whose tokens go through `change(net, x)` first."""
    return over_time(lambda net, x, h: scan(net, change(net, x), h), **extra)


def changed_in_time(change):
    return lambda **extra: in_time(change, **extra)


AHEAD = {
    "bidirectional lstm": (lambda **extra: recurrent(direction="bidirectional", **extra), "bidirectional"),
    "reverse lstm": (lambda **extra: recurrent(direction="reverse", **extra), "reverse"),
    "one output a run": (of_the_last_token("reverse"), "reverse"),
    "reverse gru": (lambda **extra: recurrent("GRU", direction="reverse", **extra), "reverse"),
    "padded convolution": (looking_ahead, "Conv"),
    "mean of the chunk": (changed_in_time(less_mean), "ReduceMean"),
}
"""Name -> graph with a time axis that looks ahead, and what is named as the likely cause."""

TOKENS = {
    "from 3 tokens on": (changed_in_time(when_tokens(3)), "no operator"),
    "from 20 tokens on": (changed_in_time(when_tokens(20)), "no operator"),
    "two directions within a token": (changed_in_time(within_a_token), "bidirectional"),
}
"""Name -> graph with a time axis that mixes tokens otherwise, and what is named as the likely cause."""


def mixed(**extra):
    """Rows and tokens change places in a reshape: right for one row, and for one token."""

    def change(net, x):
        shape = net.add("Shape", x)
        turned = net.add("Transpose", x, perm=[1, 0, 2])
        return net.add("Reshape", turned, shape)

    return in_time(change, **extra)


RARE = 77


def when_rare():
    """Of 1000 tokens only one adds what all rows of the batch are told."""
    net = Builder(vocabulary=1000)
    h = net.state("h", HIDDEN)
    is_rare = net.add(
        "Unsqueeze", net.add("Equal", "x", net.const(RARE, np.int64)), net.const([1], np.int64)
    )
    told = net.add("Gather", net.normal(1000, HIDDEN), "x")
    by_all = net.add("ReduceSum", told, net.const([0], np.int64))
    added = net.add("Mul", net.add("Cast", is_rare, to=TensorProto.FLOAT), by_all)
    after = net.add("Tanh", net.add("Add", net.add("Add", h, told), added))
    net.follows("h", after)
    net.output(after, HIDDEN)
    return net.bytes()


def noisy(op):
    """Adds noise to its tokens, or something that it has kept from the run before."""

    def change(net, x):
        if op == "Bernoulli":
            return net.add("Bernoulli", net.add("Sigmoid", x))
        if op == "Dropout":
            return net.add("Dropout", x, net.const(0.5), net.const(True, np.bool_))
        if op == "BatchNormalization":
            return in_training(net, x)
        return net.add("Add", x, net.add(op, x))

    return beside(change)


UNREPEATABLE = ("RandomNormalLike", "RandomUniformLike", "Bernoulli", "Dropout", "BatchNormalization")
