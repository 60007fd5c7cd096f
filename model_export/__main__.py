"""`python -m model_export train`: trains, exports and checks the shipped models, and prints the table."""

import argparse
import platform
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from model_export.corpus import Corpus, join, load_corpus
from model_export.export import export
from model_export.networks import StepNetwork
from model_export.progress import Progress
from model_export.recipes import MODEL_NAMES, RECIPES, SHIPPED
from model_export.report import Row, compressor_rows, table, task_table, write
from model_export.tasks.every import TASKS
from model_export.tasks.task import Cell, Folders
from model_export.train import Recipe, bits_per_byte, train
from service.model.apart import PARTS

_UNSHIPPED_FOLDER = Path("build/models")


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(prog="python -m model_export")
    parser.add_argument("command", choices=["train"])
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder of the models")
    parser.add_argument("--networks", nargs="+", choices=[*MODEL_NAMES, *TASKS], default=[])
    parser.add_argument(
        "--pictures", type=Path, default=Path("docs/pictures"), help="folder of the pictures"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of updates")
    parser.add_argument("--threads", type=int, default=2, help="threads for the matrix products")
    parser.add_argument(
        "--apart", nargs="+", choices=PARTS, default=[], help="what a server is to run one at a time"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipes = [
        replace(recipe, steps=max(1, int(recipe.steps * arguments.scale)))
        for recipe in RECIPES
        if not arguments.networks or recipe.network in arguments.networks
    ]
    rows, facts = train_all(recipes, arguments.out, arguments.apart) if recipes else ([], {})
    folders = Folders(arguments.out, arguments.pictures)
    outcomes = [
        train_task(folders, arguments.scale)
        for name, train_task in TASKS.items()
        if not arguments.networks or name in arguments.networks
    ]
    write(arguments.out, rows, facts, outcomes)
    for text in (table(rows), *(task_table(outcome) for outcome in outcomes)):
        print(text, end="\n\n")


def train_all(
    recipes: list[Recipe], out: Path, apart: Collection[str] = ()
) -> tuple[list[Row], dict[str, Cell]]:
    """Trains and exports one byte network after the other.

    Returns:
        Rows of the table and facts on the corpus.

    Raises:
        ParityError: A step graph differs from its network.
    """
    started_s = time.monotonic()
    corpus = load_corpus()
    held_out = join(corpus.held_out)
    rows = compressor_rows(held_out)
    for recipe in recipes:
        rows.append(_train_one(recipe, corpus, held_out, out, apart))
    facts: dict[str, Cell] = {
        "corpus": f"standard library of Python {platform.python_version()}, without tests",
        "corpus_sha256": corpus.digest,
        "training_bytes": len(join(corpus.training)),
        "held_out_bytes": len(held_out),
        "minutes": round((time.monotonic() - started_s) / 60, 1),
    }
    return rows, facts


def _train_one(recipe: Recipe, corpus: Corpus, held_out: bytes, out: Path, apart: Collection[str]) -> Row:
    with Progress(recipe.network, recipe.steps) as progress:
        network = train(recipe, join(corpus.training), progress)
    bits = bits_per_byte(network, held_out)
    folder = out if recipe.network in SHIPPED else _UNSHIPPED_FOLDER
    target = folder / MODEL_NAMES[recipe.network] / "1" / "model.onnx"
    facts = _facts(recipe, network, corpus, bits)
    parity = export(network, target, training=facts, text=held_out, apart=apart)
    print(
        f"{recipe.network}: {bits:.3f} bits/byte, parity {parity.max_difference:.1e} -> {target}",
        flush=True,
    )
    return Row(recipe.network, _parameter_count(network), target.stat().st_size, bits)


def _facts(recipe: Recipe, network: StepNetwork, corpus: Corpus, bits: float) -> dict[str, Cell]:
    return {
        "network": recipe.network,
        "hidden": recipe.hidden,
        "parameters": _parameter_count(network),
        "updates": recipe.steps,
        "seed": recipe.seed,
        "corpus": "python standard library",
        "corpus_sha256": corpus.digest,
        "python_version": platform.python_version(),
        "bits_per_byte": round(bits, 4),
    }


def _parameter_count(network: StepNetwork) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
