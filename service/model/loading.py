"""Makes what is served of a model file: a step graph, behind its tokenizer if it has one."""

from pathlib import Path

from service.model import shipped
from service.model.bundle import unpack
from service.model.files import ModelFileError, PackageMissingError, read_model
from service.model.protocol import Model
from service.model.providers import Providers
from service.model.step_graph import ON_CPU, StepGraph
from service.model.subwords import Subwords, TokenizerError, TokenizersMissingError
from service.model.tokenised import TokenisedModel


def load_model(
    path: Path,
    *,
    name: str,
    version: int,
    data: bytes | None = None,
    apart: frozenset[str] = frozenset(),
    providers: Providers = ON_CPU,
) -> Model:
    """Loads a model.

    Args:
        path: The ONNX file.
        name: Name in the repository.
        version: Version, >= 1.
        data: What was read from it and checked, see `bundle`; None reads it here, for trusted files.
        apart: What of a batch runs apart, beside what the contract says: `rows`, `tokens`.
        providers: What runs it.

    Raises:
        PackageMissingError: It comes with Holdfast and needs a package that is not installed.
        ModelFileError: The file is unreadable, not an ONNX graph, or breaks the contract; or its tokenizer
            cannot be served.
    """
    data = read_model(path) if data is None else data
    graph = StepGraph(path, name=name, version=version, data=data, apart=apart, providers=providers)
    vocabulary = graph.contract.vocabulary
    if vocabulary is None or vocabulary.tokenizer is None:
        return graph
    said = vocabulary.tokenizer
    file = unpack(data).files.get(said.name)
    try:
        if file is None:
            raise TokenizerError(f"{said.name} is not there; expected beside contract.toml")
        subwords = Subwords(file, name=said.name, size=vocabulary.size, sha256=said.sha256)
        return TokenisedModel(graph, subwords, start=said.start)
    except TokenizersMissingError as error:
        kind = PackageMissingError if graph.fingerprint in shipped.FINGERPRINTS else ModelFileError
        raise kind(path, str(error)) from None
    except TokenizerError as error:
        raise ModelFileError(path, str(error)) from None
