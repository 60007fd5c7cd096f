"""How the shipped models are made: one recipe per network, sized for two cores and half an hour."""

from model_export.train import Recipe

RECIPES = (
    Recipe("feedforward", hidden=256, steps=400, state_noise=0.0),
    Recipe("elman", hidden=256, steps=3000, peak_rate=2e-3),
    Recipe("gru", hidden=256, steps=3200),
    Recipe("lstm", hidden=256, steps=1600),
)

MODEL_NAMES = {
    "gru": "python-source",
    "elman": "python-source-elman",
    "feedforward": "python-source-feedforward",
    "lstm": "python-source-lstm",
}

SHIPPED = ("gru", "elman", "feedforward")
"""The LSTM is trained for the table only: it would double the size of the package."""
