"""Model files drawn from a number: step graphs with nodes of any operator, in functions and sub-graphs too.

What the nodes get depends on the tokens: until these have summed up to `LATE` it is tame, and from then on
it may have any shape and any value, so that a file may pass its check and break a step that comes later.
"""

import random

import numpy as np
import onnxruntime.capi.onnxruntime_pybind11_state as onnxruntime
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from service.model.operators import Operator, is_listed
from tests.support.hostile_models import INFO, step_graph

LATE = 7.0

DTYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip
EXTREMES = [-1, 0, 1, 2, 3, 4, 5, 8, -2, 7, 16, 100, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63)]
FLOATS = [0.0, 1.0, -1.0, 0.5, 2.0, 1e30, -1e30, np.nan, np.inf, -np.inf]
WORDS = [
    "", "forward", "reverse", "bidirectional", "SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "constant",
    "edge", "reflect", "wrap", "max", "min", "add", "mul", "none", "DCR", "CRD", "ij,jk->ik", "ii->i",
    "i,j->ij", "...i->i", "tanh", "Tanh", "Sigmoid", "Relu", "LeakyRelu", "Clip", "HardSigmoid",
]  # fmt: skip
SCHEMAS = [
    schema
    for schema in onnxruntime.get_all_operator_schema()
    if schema.name not in ("If", "Loop", "Scan", "Constant") and schema.domain in ("", "com.microsoft")
]
LISTED = [schema for schema in SCHEMAS if is_listed(Operator(schema.domain.encode(), schema.name.encode()))]


def drawn_model(number):
    """Returns a model file, always the same for a number."""
    return _Drawing(random.Random(number)).model().SerializeToString()


class _Drawing:
    def __init__(self, chance):
        self._chance = chance
        self._nodes, self._constants, self._functions = [], [], []
        self._tensors = {}  # type -> names
        self._count = 0

    def model(self):
        chance = self._chance
        version = chance.choice([11, 13, 17, 18, 20, 22, 24, 26])
        self._add("Add", ["h", "x"], "sum")
        self._add("ReduceMax", ["sum"], "most", keepdims=0)
        self._add("GreaterOrEqual", ["most", self._constant(np.float32(LATE))], "late")
        ends = []
        for _ in range(chance.choice([1, 1, 2, 3])):
            schema = chance.choice(LISTED if chance.random() < 0.97 else SCHEMAS)
            if not schema.domain and schema.since_version > version:
                continue
            is_sequence = schema.name in ("SplitToSequence", "SequenceAt")
            ends += self._sequence() if is_sequence else self._wrapped(schema)
        for end in ends:
            size = self._add("Size", [end], self._name())
            zero = self._add("Mul", [size, self._constant(np.int64(0))], self._name())
            self._add("Cast", [zero], f"{end}_zero", to=TensorProto.FLOAT)
        last = helper.make_node("Sum", ["h_next", *(f"{end}_zero" for end in ends)], ["y"])
        model = step_graph(*self._nodes, initializers=self._constants, functions=self._functions, last=last)
        for opset in [*model.opset_import, *(o for f in model.functions for o in f.opset_import)]:
            if opset.domain == "":
                opset.version = version
        return model

    def _sequence(self):
        """Splits a tensor and takes some of its pieces, and now and then in a way that is refused."""
        chance, shape = self._chance, _shape(self._chance)
        kinds = ["tensor(float)", "tensor(double)", "tensor(int64)", "tensor(int32)", "tensor(bool)"]
        axis = chance.randrange(len(shape)) if shape else 0
        length, extents = shape[axis] if shape else 1, []
        while sum(extents) < length:
            extents.append(chance.randint(0, length - sum(extents)))
        if chance.random() < 0.2:
            extents.append(chance.choice([*EXTREMES, 0, 0, 0]))
        sequence, pieces = self._name(), []
        split = helper.make_node("SplitToSequence", [self._value(chance.choice(kinds), shape)], [sequence])
        if chance.random() < 0.95:
            split.input.append(self._told(extents, chance.choice(["list"] * 19 + ["number"])))
        split.attribute.append(helper.make_attribute("axis", axis))
        if chance.random() < 0.1:
            split.attribute[0].i = chance.choice(EXTREMES)
        if chance.random() < 0.5:
            self._attribute(split, "keepdims", "INT")
        self._nodes.append(split)
        for _ in range(chance.choice([1, 2, 3])):
            place = chance.randrange(-len(extents), len(extents)) if extents else 0
            place = chance.choice(EXTREMES) if chance.random() < 0.1 else place
            position = self._told([place], chance.choice(["number"] * 9 + ["list"]))
            at = helper.make_node("SequenceAt", [sequence, position], [self._name()])
            self._nodes.append(at)
            pieces.append(at.output[0])
        if chance.random() < 0.05:
            self._nodes.append(self._branch(helper.make_node("Identity", [sequence], ["same"]), ["same"]))
        return pieces

    def _told(self, numbers, form):
        """Returns the name of constant numbers, or, now and then, of some that are none or not int64."""
        chance = self._chance
        numbers = [] if chance.random() < 0.02 else numbers
        dtype = np.int64 if chance.random() < 0.95 else np.int32
        value = np.array([_within(number, dtype) for number in numbers], dtype)
        value = value[0] if form == "number" and numbers else value
        if chance.random() < 0.5:
            return self._constant(value)
        return self._add("Constant", [], self._name(), value=numpy_helper.from_array(np.asarray(value)))

    def _wrapped(self, schema):
        """Adds a node of an operator, as it is or inside of something; returns its outputs."""
        node = self._node(schema)
        ends = [name for name in node.output if name][:1]
        how = self._chance.choice(["plain", "plain", "plain", "function", "branch", "loop"])
        if how == "plain" or not ends:
            self._nodes.append(node)
        elif how == "function":
            domain = self._chance.choice(["mine", "mine", "pkg.torch", "", "com.microsoft"])
            inputs = sorted({name for name in node.input if name})
            opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
            name = self._chance.choice(["made", schema.name])
            self._functions.append(helper.make_function(domain, name, inputs, ends, [node], opsets))
            self._nodes.append(helper.make_node(name, inputs, ends, domain=domain))
        else:
            self._nodes.append(self._branch(node, ends) if how == "branch" else self._loop(node, ends))
        return ends

    def _branch(self, node, ends):
        """Runs it when it is late only, and gives its size."""
        tame = helper.make_node("Constant", [], ["none"], value=numpy_helper.from_array(np.int64(0)))
        output = [INFO("size", TensorProto.INT64, [])]
        size = helper.make_node("Size", ends, ["size"])
        branch = helper.make_graph([node, size], "late", [], output)
        none = helper.make_graph([tame], "none", [], [INFO("none", TensorProto.INT64, [])])
        ends[:] = [self._name()]
        return helper.make_node("If", ["late"], list(ends), then_branch=branch, else_branch=none)

    def _loop(self, node, ends):
        """Runs it three times, and gives the last."""
        goes_on = helper.make_node("Identity", ["going"], ["goes_on"])
        size = helper.make_node("Size", ends, ["size"])
        body = helper.make_graph(
            [goes_on, node, size],
            "turn",
            [
                INFO("turn", TensorProto.INT64, []),
                INFO("going", TensorProto.BOOL, []),
                INFO("before", TensorProto.INT64, []),
            ],
            [INFO("goes_on", TensorProto.BOOL, []), INFO("size", TensorProto.INT64, [])],
        )
        ends[:] = [self._name()]
        turns, start = self._constant(np.int64(3)), self._constant(np.int64(0))
        return helper.make_node("Loop", [turns, "", start], list(ends), body=body)

    def _node(self, schema):
        chance = self._chance
        types, inputs, shape = {}, [], _shape(chance)
        for parameter in schema.inputs:
            option = parameter.option.name if hasattr(parameter.option, "name") else str(parameter.option)
            if option.endswith("Optional") and chance.random() < 0.4:
                inputs.append("")
                continue
            allowed = (
                [parameter.typeStr] if parameter.typeStr in DTYPES else self._allowed(schema, parameter)
            )
            if parameter.typeStr not in types:
                types[parameter.typeStr] = chance.choice(allowed) if allowed else None
            count = chance.choice([1, 2, 3]) if option.endswith("Variadic") else 1
            inputs += [self._value(types[parameter.typeStr], shape) for _ in range(count)]
        while inputs and not inputs[-1]:
            inputs.pop()
        outputs = [self._name() for _ in range(max(1, min(len(schema.outputs), schema.max_output)))]
        node = helper.make_node(schema.name, inputs, outputs, domain=schema.domain)
        for name, declared in schema.attributes.items():
            if getattr(declared, "required", False) or chance.random() < 0.4:
                self._attribute(node, name, str(declared.type).rpartition(".")[2])
        return node

    def _allowed(self, schema, parameter):
        for constraint in schema.type_constraints:
            if constraint.type_param_str == parameter.typeStr:
                allowed = [kind for kind in constraint.allowed_type_strs if kind in DTYPES]
                return [kind for kind in allowed if kind == "tensor(float)"] * 2 + allowed
        return []

    def _value(self, kind, shape):
        """Returns the name of a tensor of a type: one that changes when it is late, or a constant."""
        chance = self._chance
        if kind is None:
            return ""
        known = self._tensors.setdefault(kind, [])
        if known and chance.random() < 0.2:
            return chance.choice(known)
        dtype = DTYPES[kind]
        tame = self._constant(_array(chance, dtype, shape if chance.random() < 0.8 else _shape(chance)))
        if chance.random() < 0.3:
            return tame
        wild = self._constant(_array(chance, dtype, shape if chance.random() < 0.4 else _shape(chance)))
        branches = [
            helper.make_graph(
                [helper.make_node("Identity", [source], [f"{source}_{place}"])],
                place,
                [],
                [INFO(f"{source}_{place}", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)],
            )
            for place, source in (("now", wild), ("yet", tame))
        ]
        name = self._name()
        self._nodes.append(
            helper.make_node("If", ["late"], [name], then_branch=branches[0], else_branch=branches[1])
        )
        known.append(name)
        return name

    def _attribute(self, node, name, kind):
        chance = self._chance
        number = chance.choice(EXTREMES if chance.random() < 0.4 else [0, 1, 2, 3])
        attribute = {
            "INT": {"i": number},
            "INTS": {
                "ints": [chance.choice([0, 1, 1, 2, 3, -1, number]) for _ in range(chance.randrange(5))]
            },
            "FLOAT": {"f": chance.choice(FLOATS)},
            "FLOATS": {"floats": [chance.choice(FLOATS) for _ in range(chance.randrange(4))]},
            "STRING": {"s": chance.choice(WORDS).encode()},
            "STRINGS": {"strings": [chance.choice(WORDS).encode() for _ in range(chance.randrange(4))]},
            "TENSOR": {"t": numpy_helper.from_array(_array(chance, np.float32, [1]))},
        }.get(kind)
        if attribute is not None:
            node.attribute.append(AttributeProto(name=name, type=kind, **attribute))

    def _add(self, operator, inputs, output, **attributes):
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def _constant(self, value):
        name = self._name()
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _name(self):
        self._count += 1
        return f"t{self._count}"


def _shape(chance):
    rank = chance.choice([0, 1, 1, 2, 2, 3, 3, 4])
    return [chance.choice([0, 1, 1, 2, 2, 3, 4, 5, 8, 16]) for _ in range(rank)]


def _within(value, dtype):
    ends = np.iinfo(dtype)
    return min(max(value, int(ends.min)), int(ends.max))


def _array(chance, dtype, shape):
    count = int(np.prod(shape, dtype=np.int64))
    if np.issubdtype(dtype, np.floating):
        pool = FLOATS if chance.random() < 0.4 else [chance.gauss(0, 2) for _ in range(8)]
    elif dtype is np.bool_:
        pool = [False, True]
    else:
        pool = EXTREMES if chance.random() < 0.3 else [0, 1, 1, 2, 3, -1]
        pool = [_within(value, dtype) for value in pool]
    with np.errstate(over="ignore", invalid="ignore"):
        return (
            np.array([chance.choice(pool) for _ in range(count)], dtype=object).astype(dtype).reshape(shape)
        )
