"""A compose file's services without a container engine: the same commands, users, mounts, names and rights.

Needs Linux and root. Each container has a mount, pid, uts and network namespace of its own; its root is an
overlay, read-only, of its image over the root of this machine.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

from tests.deploy.images import PATH
from tests.support.waiting import wait_for

TOOLS = ("unshare", "nsenter", "setpriv", "ip", "mount", "chroot", "redis-cli", "openssl")
SUBNET = "10.81.7"


def why_not():
    """Returns why containers cannot be had here, None if they can."""
    if os.geteuid() != 0:
        return "containers need root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not on PATH"
    trial = "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && mount -t overlay o"
    trial += " -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r && ip link add br0 type bridge"
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-c", trial]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return "the kernel gives no namespaces, overlays or bridges here"
    python = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    command = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "python3", "-c", python]
    if subprocess.run(command, env={"PATH": PATH}, capture_output=True, check=False).returncode:
        return "no python3 of 3.11 or later that every user may run, with venv"
    return None


class Project:
    """Services of a compose file, on a network of their own.

    Args:
        compose: The file, parsed and interpolated.
        top: Folder that its paths are relative to.
        images: Name of an image in the file -> Image.
        folder: For volumes and logs.
    """

    def __init__(self, compose, top, images, folder):
        self.compose, self.top, self.images, self.folder = compose, top, images, folder
        self.containers = {}
        self.names = list(compose["services"])

    def __enter__(self):
        self._holder = subprocess.Popen(
            [
                "unshare",
                "--net",
                "sh",
                "-c",
                "ip link add br0 type bridge && ip link set br0 up && exec sleep 3600",
            ]
        )
        self.network = f"/proc/{self._holder.pid}/ns/net"
        wait_for(lambda: self._outside("ip", "link", "show", "br0").returncode == 0)
        return self

    def __exit__(self, *_):
        with contextlib.ExitStack() as stack:
            stack.callback(self._holder.wait)
            stack.callback(self._holder.kill)
            for container in self.containers.values():
                stack.callback(container.kill)

    def up(self, name):
        """Starts a service after those it depends on, as their conditions say."""
        if name in self.containers:
            return self.containers[name]
        service = self.compose["services"][name]
        for other, needed in service.get("depends_on", {}).items():
            self.up(other)
            if needed["condition"] == "service_healthy":
                self.wait_healthy(other)
            elif needed["condition"] == "service_completed_successfully":
                assert self.containers[other].wait() == 0, self.containers[other].log()
        return self.start(name, service)

    def start(self, name, service):
        self.containers[name] = container = Container(self, name, service)
        return container

    def restart(self, name):
        """Stops a service and starts it anew, on its volumes."""
        self.containers.pop(name).stop()
        return self.start(name, self.compose["services"][name])

    def wait_healthy(self, name):
        wait_for(self.containers[name].is_healthy, 120, what=f"{name} is not healthy")

    def run(self, name, *command):
        """Runs a command as a service would run; returns its exit code, and what it said."""
        service = {**self.compose["services"][name], "command": list(command)}
        container = Container(self, f"{name}-run", service)
        code = container.wait()
        return code, container.log()

    def _outside(self, *command):
        return subprocess.run(
            ["nsenter", f"--net={self.network}", *command], capture_output=True, text=True, check=False
        )


class Container:
    """A service's process and what belongs to it."""

    count = 0

    def __init__(self, project, name, service):
        self.image = project.images[service["image"]]
        self._project, self._service = project, service
        self._folder = project.folder / name
        self._names = project.names
        Container.count += 1
        script = self._folder / "setup"
        self._lay_out(name, script, Container.count)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "sh", str(script)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def log(self):
        return (self._folder / "log").read_text()[-3000:]

    def is_healthy(self):
        """Whether what the service, or its image, says of health holds."""
        assert self._process.poll() is None, self.log()
        test = self._service.get("healthcheck", {}).get("test") or self.image.healthcheck
        command = test[1:] if test[0] == "CMD" else ["/bin/sh", "-c", test[1].replace("$$", "$")]
        return self.execute(*command).returncode == 0

    def execute(self, *command):
        """Runs a command inside."""
        inside = [
            "nsenter",
            f"--target={self._pid()}",
            "--mount",
            "--net",
            "--uts",
            "--pid",
            "--root",
            "--wd=/",
        ]
        return subprocess.run(
            [*inside, *self._as_user(command)], capture_output=True, text=True, timeout=30, check=False
        )

    def wait(self):
        return self._process.wait(120)

    def kill(self):
        self._end(signal.SIGKILL)

    def stop(self):
        """Sends SIGTERM to the first process, and returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number):
        if self._process.poll() is None:
            os.kill(self._pid(), number)
        return self._process.wait(30)

    def _pid(self):
        pid = self._process.pid
        children = wait_for(Path(f"/proc/{pid}/task/{pid}/children").read_text, what=self.log())
        return int(children.split()[0])

    def _as_user(self, command):
        user, group = (self._service.get("user") or self.image.user).split(":")
        environment = {"PATH": PATH, **self.image.environment, **self._service.get("environment", {})}
        yield from (
            "/usr/bin/setpriv",
            f"--reuid={user}",
            f"--regid={group}",
            "--clear-groups",
            "--no-new-privs",
        )
        yield from ("--inh-caps=-all", "--bounding-set=-all")
        yield from ("/usr/bin/env", "-i", *(f"{name}={value}" for name, value in environment.items()))
        yield from command

    def _command(self):
        entrypoint = self._service.get("entrypoint", self.image.entrypoint)
        return [*entrypoint, *self._service.get("command", self.image.command)]

    def _lay_out(self, name, script, number):
        """Writes the script that makes the container, and the layer of its image and its mount points."""
        points, root, host = (
            self._folder / "points",
            self._folder / "root",
            self._service.get("hostname", name),
        )
        shutil.rmtree(points, ignore_errors=True)
        work = self._folder / "work"
        for folder in (root, work):
            folder.mkdir(parents=True, exist_ok=True)
        # An overlay takes no lower layer that lies in another, so the image's is this one's, by links.
        subprocess.run(["cp", "-al", str(self.image.layer), str(points)], check=True)
        own = f"{SUBNET}.{number}"
        addresses = self._project.folder / "addresses"
        with addresses.open("a") as table:
            table.write(f"{own} {host}\n")
        newest = dict(line.split()[::-1] for line in addresses.read_text().splitlines())
        hosts = self._project.folder / "hosts"
        hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {one}\n" for one, ip in newest.items()))
        outside = f"nsenter --net={self._project.network} ip link"
        lines = [
            "set -eu", "mount --make-rprivate /", f"hostname {host}",
            f"{outside} add v{number} type veth peer name p{number}",
            f"{outside} set v{number} master br0 up", f"{outside} set p{number} netns 1",
            f"ip link set p{number} name eth0", f"ip addr add {own}/24 dev eth0",
            "ip link set eth0 up", "ip link set lo up",
            f"mount -t overlay overlay -o ro,lowerdir=/,upperdir={points},workdir={work} {root}",
            f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev",
        ]  # fmt: skip
        for entry in self._service["tmpfs"]:
            target, _, options = entry.partition(":")
            (points / target[1:]).mkdir(parents=True, exist_ok=True)
            lines.append(f"mount -t tmpfs -o mode=1777,{options} tmpfs {root}{target}")
        lines += self._binds(points, root, hosts)
        command = shlex.join(self._as_user(self._command()))
        lines.append(f"exec chroot {root} {command}")
        script.write_text("\n".join(lines) + "\n")

    def _binds(self, points, root, hosts):
        yield f"mount --bind {hosts} {root}/etc/hosts"
        places = []
        for entry in self._service.get("volumes", []):
            source, target, *mode = entry.split(":")
            if not source.startswith("."):
                place = self._project.folder / "volumes" / source
                place.mkdir(parents=True, exist_ok=True)
                os.chown(place, *map(int, self._service["user"].split(":")))
            else:
                place = self._project.top / source
            places.append((place, target, mode == ["ro"]))
        for name in self._service.get("secrets", []):
            place = self._project.top / self._project.compose["secrets"][name]["file"]
            places.append((place, f"/run/secrets/{name}", True))
        for place, target, read_only in places:
            point = points / target[1:]
            point.parent.mkdir(parents=True, exist_ok=True)
            point.mkdir(exist_ok=True) if place.is_dir() else point.touch()
            yield f"mount --bind {place} {root}{target}"
            if read_only:
                yield f"mount -o remount,ro,bind {root}{target}"
