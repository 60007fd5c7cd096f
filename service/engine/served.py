"""Finds the model that a stored session runs on."""

from service.errors import ModelMismatch, RecordCorrupt
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
