"""The model that a stored session runs on: found by its record, held against what a request names."""

from service.common.errors import ModelMismatch, RecordCorrupt
from service.model.protocol import Model, Models
from service.store.record import Record


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
    asked = f"{name or model.name} version {version or 'any'}"
    raise ModelMismatch(
        f"the session runs on {model.name} version {model.version}, the request names {asked}",
        field="model",
    )
