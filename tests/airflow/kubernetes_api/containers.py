"""A container as a local process: its command, environment, mounted files, log and end."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Image:
    """What a container image brings: programs by name, and its own environment."""

    programs: Mapping[str, list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)


class LogLines:
    """What a container wrote, each line with its time; readers may wait for more."""

    def __init__(self) -> None:
        self._lines: list[tuple[datetime, bytes]] = []
        self._changed = threading.Condition()
        self._is_closed = False

    def add(self, line: bytes) -> None:
        with self._changed:
            self._lines.append((datetime.now(UTC), line))
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def read(self, start: int, *, wait: bool) -> tuple[list[tuple[datetime, bytes]], bool]:
        """The lines from `start` on, and whether more may come; waits for one if told to."""
        with self._changed:
            if wait and len(self._lines) <= start and not self._is_closed:
                self._changed.wait(timeout=0.5)
            return self._lines[start:], not self._is_closed

    def text(self) -> str:
        return b"".join(line for _, line in self._lines).decode(errors="replace")


class ContainerProcess:
    """Runs one container. `on_exit` gets its exit code, on a thread of its own."""

    def __init__(
        self,
        pod: dict[str, Any],
        image: Image,
        secrets: Mapping[str, Mapping[str, str]],
        folder: Path,
        on_exit: Callable[[int], None],
        config_maps: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        self.log = LogLines()
        container = pod["spec"]["containers"][0]
        places = _mount(pod, container, secrets, config_maps, folder)
        variables = _environment(container, secrets)
        words = [_placed(_expanded(word, variables), places) for word in _command(container, image)]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HOSTNAME": pod["metadata"]["name"],
            **image.environment,
            **{name: _placed(value, places) for name, value in variables.items()},
        }
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        self._on_exit = on_exit
        threading.Thread(target=self._follow, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        """As a kubelet does: the signal goes to the first process only."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """The container's processes are gone with it."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _follow(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.log.add(line if line.endswith(b"\n") else line + b"\n")
        code = self._process.wait()
        self.kill()
        # Before the log ends: whoever follows it then asks for the pod's status.
        self._on_exit(code if code >= 0 else 128 - code)
        self.log.close()


def _command(container: dict[str, Any], image: Image) -> list[str]:
    program, *rest = [*(container.get("command") or []), *(container.get("args") or [])]
    return [*image.programs.get(program, [program]), *rest]


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """$(NAME) is the container's own variable; one that it has not stays as it is."""
    return re.sub(r"\$\((\w+)\)", lambda found: variables.get(found[1], found[0]), text)


def _placed(text: str, places: Mapping[str, Path]) -> str:
    """A path below a mount is where the volume is on this machine."""
    for mount, folder in places.items():
        if text == mount or text.startswith(f"{mount}/"):
            return f"{folder}{text.removeprefix(mount)}"
    return text


def _mount(
    pod: dict[str, Any],
    container: dict[str, Any],
    secrets: Mapping[str, Mapping[str, str]],
    config_maps: Mapping[str, Mapping[str, str]],
    folder: Path,
) -> dict[str, Path]:
    """Make the volumes that a container mounts; a mount path -> the folder that it is."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or []}
    places = {}
    for mount in container.get("volumeMounts") or []:
        volume = volumes[mount["name"]]
        place = folder / "volumes" / mount["name"]
        place.mkdir(parents=True, exist_ok=True)
        for item in (volume.get("downwardAPI") or {}).get("items", []):
            (place / item["path"]).write_text(_field(pod, item["fieldRef"]["fieldPath"]))
        files: Mapping[str, str] = {}
        if "secret" in volume:
            files = secrets[volume["secret"]["secretName"]]
        if "configMap" in volume:
            files = config_maps[volume["configMap"]["name"]]
        for name, value in files.items():
            (place / name).write_text(value)
        if mount["mountPath"] != "/tmp":  # this machine has one, in which a checkout may lie
            places[mount["mountPath"]] = place
    return places


def _field(pod: dict[str, Any], path: str) -> str:
    """What the downward API gives for metadata.name or metadata.annotations['key']."""
    head, _, key = path.partition("['")
    value = pod
    for step in head.split("."):
        value = value[step]
    return str(value[key.removesuffix("']")] if key else value)


def _environment(
    container: dict[str, Any], secrets: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        found |= secrets[source["secretRef"]["name"]]
    for variable in container.get("env") or []:
        if "valueFrom" in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            value = secrets.get(reference["name"], {}).get(reference["key"])
            if value is None and not reference.get("optional"):
                raise KeyError(f"no Secret {reference['name']!r} with {reference['key']!r}")
            if value is not None:
                found[variable["name"]] = value
        else:
            found[variable["name"]] = variable.get("value", "")
    return found
