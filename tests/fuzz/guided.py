"""One harness under atheris, which follows the coverage of the service: `python -m tests.fuzz.guided NAME`.

Not among the development packages: `pip install atheris` first. Further arguments go to libFuzzer, such as
-max_total_time=600. What it finds on the way goes to build/fuzz/NAME; what breaks the harness, to the
corpus.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["service"]):
    from tests.fuzz.campaign import CORPUS, keep
    from tests.fuzz.harnesses import HARNESSES


def main():
    """Fuzzes until it is broken or stopped."""
    name, flags = sys.argv[1], sys.argv[2:]
    found = Path("build/fuzz") / name
    found.mkdir(parents=True, exist_ok=True)

    def attempt(data):
        try:
            HARNESSES[name].run(data)
        except Exception:
            print(f"{name}: broken; kept as {keep(name, data)}", flush=True)
            raise

    atheris.Setup(
        [sys.argv[0], f"-artifact_prefix={found}/", *flags, str(found), str(CORPUS / name)], attempt
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
