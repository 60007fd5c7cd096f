"""Images without a container engine: what a Dockerfile adds to its base, made over this machine's root.

This root stands for the base image, so what a base brings is not tested.
"""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from service.store.embedded import find_binary
from tests.deploy.dockerfile import Dockerfile

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Image:
    """What a Dockerfile's last stage adds to its base, and how it starts.

    Attributes:
        layer: Folder of what is added.
        folder: WORKDIR.
        environment, user, entrypoint, command, healthcheck: As the Dockerfile says.
    """

    def __init__(self, layer):
        self.layer = layer
        self.environment = {}
        self.folder = "/"
        self.user = self.healthcheck = None
        self.entrypoint, self.command = [], []

    @classmethod
    def build(cls, path, context, folder):
        """Does what a Dockerfile says, over this machine's root: every RUN for real, every COPY."""
        stages = {}
        for number, (name, steps) in enumerate(Dockerfile(path).stages):
            image = stages[name or str(number)] = cls(folder / f"stage-{number}")
            image.layer.mkdir(parents=True)
            for instruction, text in steps:
                image._step(instruction, text, context, stages, folder)
        return image

    def _step(self, instruction, text, context, stages, folder):
        if instruction == "RUN":
            self._run(text, folder)
        elif instruction == "COPY":
            *sources, target = (part for part in text.split() if not part.startswith("--"))
            options = [part for part in text.split() if part.startswith("--from=")]
            origin = stages[options[0].removeprefix("--from=")].layer if options else context
            for source in sources:
                self._copy(origin / source.lstrip("/"), target, ignored=() if options else ("__pycache__",))
        elif instruction == "ENV":
            self.environment |= dict(part.split("=", 1) for part in shlex.split(text))
        elif instruction == "WORKDIR":
            self.folder = text
            (self.layer / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "USER":
            self.user = text
        elif instruction in ("ENTRYPOINT", "CMD"):
            setattr(self, {"ENTRYPOINT": "entrypoint", "CMD": "command"}[instruction], json.loads(text))
        elif instruction == "HEALTHCHECK":
            self.healthcheck = ["CMD", *json.loads(text.partition("CMD")[2])]
        else:
            assert instruction in ("FROM", "ARG", "LABEL", "EXPOSE", "STOPSIGNAL"), (
                f"{instruction} is not known here"
            )

    def _run(self, text, folder):
        script = " ".join(part for part in text.split(" ") if not part.startswith("--mount="))
        work, root = folder / "work", folder / "root"
        for one in (work, root):
            one.mkdir(exist_ok=True)
        mounts = f"mount -t overlay overlay -o lowerdir=/,upperdir={self.layer},workdir={work} {root}"
        mounts += f" && mount --rbind /dev {root}/dev && mount --rbind /proc {root}/proc"
        inside = f"cd {self.folder} && {script}"
        outside = f"{mounts} && exec chroot {root} /bin/sh -c {shlex.quote(inside)}"
        run = subprocess.run(
            ["unshare", "--mount", "sh", "-c", outside],
            capture_output=True, text=True, env={**os.environ, "PATH": PATH}, check=False,
        )  # fmt: skip
        assert run.returncode == 0, f"{text}\n{run.stdout[-1000:]}{run.stderr[-2000:]}"

    def _copy(self, source, target, *, ignored):
        place = self.layer / str(Path("/", self.folder, target)).lstrip("/")
        if source.is_dir():
            ignore = shutil.ignore_patterns(*ignored)
            shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        else:
            place = place / source.name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)


def redis_image(folder):
    """Stands for the image of Redis: the embedded store's Valkey by that name, this machine's redis-cli."""
    image = Image(folder)
    place = folder / "usr/local/bin/redis-server"
    place.parent.mkdir(parents=True)
    shutil.copy(find_binary(), place)
    place.chmod(0o755)
    return image
