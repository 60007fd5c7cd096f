"""`holdfast demo`: streams through a server, kills the server half-way, and judges the outputs."""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from holdfast.demo.judgement import Judgement
from holdfast.demo.language_screen import LanguageScreen
from holdfast.demo.live import LiveScreen, verdict
from holdfast.demo.sensor_screen import SensorScreen
from holdfast.demo.shown import Shown, stream_shown
from holdfast.demo.sound_screen import SoundScreen
from holdfast.demo.text_stream import stream_text
from holdfast.demo.words_screen import WordsScreen
from service.settings.schema import EMBEDDED, MODEL

SCREENS: dict[str, type[Shown]] = {
    screen.model: screen for screen in (SensorScreen, LanguageScreen, SoundScreen, WordsScreen)
}
"""Of the networks that are shown in another way than `python-source`."""


def main(arguments: list[str]) -> int:
    """Runs the demo.

    Returns:
        0 if nothing was lost or applied twice and every output is right; else 1.
    """
    options = _parse(arguments)
    with contextlib.ExitStack() as stack:
        data_dir = options.data_dir
        if data_dir is None and not options.type:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-")))
        data_dir = data_dir or Path("~/.local/share/holdfast-demo").expanduser()
        data_dir.mkdir(parents=True, exist_ok=True)
        if options.type:
            from holdfast.demo.typing_stream import type_live

            return type_live(data_dir, options.store)
        screen, judged = _stream(data_dir, options)
    verdict(str(judged), is_good=judged.is_good)
    if options.picture is not None and judged.is_good:
        screen.save_picture(options.picture, str(judged))
    return 0 if judged.is_good else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="holdfast demo",
        description="Streams tokens through a server that is killed half-way, and checks the outputs.",
    )
    parser.add_argument(
        "--model", choices=[MODEL, *SCREENS], default=MODEL, help=f"network to show (default: {MODEL})"
    )
    parser.add_argument(
        "--store", default=EMBEDDED, help="store, as for holdfast serve (default: embedded)"
    )
    parser.add_argument("--file", type=Path, help="text to stream (default: a held-out source file)")
    parser.add_argument("--bytes", "--tokens", type=int, dest="tokens", help="most tokens to stream")
    parser.add_argument("--type", action="store_true", help="stream your keystrokes")
    parser.add_argument(
        "--picture", type=Path, help="SVG file to which the last screen of a successful run is saved"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the embedded store (default: temporary)")
    options = parser.parse_args(arguments)
    if options.type and options.model != MODEL:
        parser.error(f"--type shows {MODEL}; keystrokes are not tokens of {options.model}")
    if options.file is not None and options.model not in (MODEL, LanguageScreen.model, WordsScreen.model):
        parser.error(f"--file is for networks over text; {options.model} is shown on data that is made")
    return options


def _stream(data_dir: Path, options: argparse.Namespace) -> tuple[LiveScreen, Judgement]:
    shown = SCREENS.get(options.model)
    if shown is None:
        return stream_text(data_dir, options.store, options.file, options.tokens)
    return stream_shown(shown(options.tokens, options.file), data_dir, options.store)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
