"""Which operators a model file may use, and what belongs to onnxruntime. Pure.

onnxruntime has a kernel for about four hundred operators, and finds it by domain and name alone. Many were
written for values that a network gives them, not for those that somebody chooses: they write past their
memory. So there is a list of what recurrent graphs are made of, and a kernel that is not on it is refused
wherever it is named. What is on it has stood `make fuzz` with values and shapes that were drawn; not on it
are, beside what nobody needs in a step,

- what did not stand it: Attention, BatchNormalization in training, DFT, Dropout, GridSample, MaxRoiPool,
  ReverseSequence, RoiAlign, STFT, Unique, Upsample, sequences of tensors but for what
  `service.model.sequences` lets through, and of onnxruntime's own DynamicQuantizeMatMul,
  MatMulIntegerToFloat and QLinearSigmoid (its optimiser writes them; files from before it have what they
  are made of);
- what draws random numbers: a step that is run again has to give what it gave;
- text, images and losses;
- what onnxruntime keeps in ONNX's domain though ONNX does not have it: Affine, Crop, GivenTensorFill,
  MemcpyToHost, Scale, SimplifiedLayerNormalization and others.
"""

from typing import NamedTuple


class Operator(NamedTuple):
    """What a node names and a function of the file is found by; ONNX's domain is empty.

    Attributes:
        domain: Who defines it.
        name: Within the domain.
        overload: Which of several functions of this name.
    """

    domain: bytes
    name: bytes
    overload: bytes = b""


ONNX_DOMAIN, ONNX_DOMAIN_TOO = b"", b"ai.onnx"
MICROSOFT_DOMAIN = b"com.microsoft"

RESERVED_DOMAINS = (b"ai.onnx", b"com.microsoft", b"com.ms", b"org.pytorch")
"""Domains, with all below them, in which onnxruntime has kernels, had them, or may have: there it takes its
own kernel in place of a function of the file, so that the function says nothing of what is run."""

OPSETS = range(7, 27)
"""Versions of ONNX's operators: onnxruntime promises nothing below, and later ones have not been tried."""

MOST = (1 << 31) - 1

ATTRIBUTE_RANGES = {b"group": (1, MOST), b"batch_dims": (0, MOST), b"training_mode": (0, 0)}
"""Least and most of attributes with which kernels that are listed end the process beyond."""

ONNX_OPS = frozenset(
    b"""
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul
    Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt
    Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor

    ArgMax ArgMin CumProd CumSum Hardmax LogSoftmax ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Softmax TopK

    AveragePool BatchNormalization Conv ConvInteger ConvTranspose Einsum GRU Gemm GlobalAveragePool
    GlobalMaxPool GroupNormalization InstanceNormalization LRN LSTM LayerNormalization LpNormalization
    LpPool MatMul MatMulInteger MaxPool MeanVarianceNormalization RMSNormalization RNN RotaryEmbedding

    Compress Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather GatherElements
    GatherND NonZero OneHot Pad Range Reshape Scatter ScatterElements ScatterND Shape Size Slice
    SequenceAt SpaceToDepth Split SplitToSequence Squeeze Tile Transpose Trilu Unsqueeze

    DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul QuantizeLinear

    If Loop Scan
    """.split()
)

MICROSOFT_OPS = frozenset(
    b"""
    BiasGelu DequantizeLinear DynamicQuantizeLSTM FastGelu FusedConv FusedGemm FusedMatMul Gelu MatMulNBits
    QGemm QLinearAdd QLinearConcat QLinearMul QuantizeLinear QuickGelu SkipLayerNormalization
    """.split()
)
"""Those that quantised and fused recurrent graphs have. The other hundred include some that load further
files or run other code."""


def same_domain(domain: bytes) -> bytes:
    """Returns the one name that a domain has: ONNX's has two."""
    return ONNX_DOMAIN if domain == ONNX_DOMAIN_TOO else domain


def is_reserved(domain: bytes) -> bool:
    """Says whether onnxruntime may have kernels in a domain."""
    return domain == ONNX_DOMAIN or any(
        domain == reserved or domain.startswith(reserved + b".") for reserved in RESERVED_DOMAINS
    )


def is_listed(operator: Operator) -> bool:
    """Says whether onnxruntime's kernel for an operator may run."""
    if operator.domain == ONNX_DOMAIN:
        return operator.name in ONNX_OPS
    return operator.domain == MICROSOFT_DOMAIN and operator.name in MICROSOFT_OPS
