"""ListModels, GetModel and ReloadModels."""

from typing import Any

from holdfast.errors import InvalidRequest
from holdfast.v1 import holdfast_pb2 as pb
from service.model.protocol import Model
from service.model.reloading import ModelReloading
from service.model.repository import ModelRepository
from service.rpc.model_message import contract_message
from service.rpc.rpcs import Functions


class ModelRpcs:
    """Implements the rpcs about models.

    Args:
        models: The models served.
        reloading: Loads models that have come since.
        max_chunk_tokens: Most tokens of a chunk.
    """

    def __init__(
        self, models: ModelRepository, reloading: ModelReloading, *, max_chunk_tokens: int
    ) -> None:
        self._models = models
        self._reloading = reloading
        self._max_chunk_tokens = max_chunk_tokens

    def rpcs(self) -> Functions:
        """Returns the rpcs by name."""
        return {
            "ListModels": self.list_models,
            "GetModel": self.get_model,
            "ReloadModels": self.reload_models,
        }

    async def list_models(self, *_: Any) -> pb.ListModelsResponse:
        """Lists every model."""
        return pb.ListModelsResponse(models=[self._model_message(model) for model in self._models])

    async def get_model(self, request: pb.GetModelRequest, *_: Any) -> pb.GetModelResponse:
        """Describes one model."""
        if not request.model.name:
            raise InvalidRequest("model.name is empty", field="model.name")
        model = self._models.find(request.model.name, request.model.version)
        return pb.GetModelResponse(model=self._model_message(model))

    async def reload_models(self, *_: Any) -> pb.ReloadModelsResponse:
        """Looks for new model files now."""
        refused = await self._reloading.reload()
        return pb.ReloadModelsResponse(
            models=[pb.ModelRef(name=model.name, version=model.version) for model in self._models],
            refused=[str(error) for error in refused],
        )

    def _model_message(self, model: Model) -> pb.Model:
        message = pb.Model(
            name=model.name,
            version=model.version,
            fingerprint=model.fingerprint.hex(),
            is_newest=model.version == self._models.newest_version(model.name),
            max_chunk_tokens=self._max_chunk_tokens,
        )
        message.MergeFrom(contract_message(model.contract))
        return message
