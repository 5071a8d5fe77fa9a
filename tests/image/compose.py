"""docker-compose.yml as data, and a service of it as arguments of podman."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def services() -> dict[str, dict[str, Any]]:
    return read()["services"]


def read() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def podman_arguments(service: dict[str, Any], image: str, replaced: dict[str, str]) -> list[str]:
    """What `podman run` is to be told; texts of the command are replaced, for other addresses."""

    def write(text: str) -> str:
        for old, new in replaced.items():
            text = text.replace(old, new)
        return text

    options = [f"--env={name}={value}" for name, value in service.get("environment", {}).items()]
    options += [f"--tmpfs={path}" for path in service["tmpfs"]]
    options += [f"--cap-drop={name}" for name in service["cap_drop"]]
    options += [f"--security-opt={line}" for line in service["security_opt"]]
    options += ["--read-only", "--read-only-tmpfs=false"] if service["read_only"] else []
    options += ["--init"] if service.get("init") else []
    for volume in service.get("volumes", ()):
        source, _, rest = volume.partition(":")
        if source.startswith("."):
            options.append(f"--volume={(ROOT / source).resolve()}:{rest}")
        else:
            options.append(f"--volume={source}-of-test:{rest}")
    if "working_dir" in service:
        options.append(f"--workdir={service['working_dir']}")
    if "entrypoint" in service:
        (program,) = service["entrypoint"]
        options.append(f"--entrypoint={program}")
    return [*options, image, *map(write, service["command"])]
