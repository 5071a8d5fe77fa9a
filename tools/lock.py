"""Resolve the newest versions that fit setup.cfg and write them to constraints/venv.txt.

make lock
"""

import os
import re
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path("constraints/venv.txt")
HEADER = "# The versions that .venv is built from, tested together. Written by `make lock`.\n"


def main() -> None:
    find_links = os.environ.get("PIP_FIND_LINKS")
    command = [
        str(Path(sys.executable).parent / "uv"), "pip", "compile", "--quiet",
        "setup.cfg", "constraints/pins.in",
        "--extra", "engine", "--extra", "job", "--extra", "dev",
        "--no-header", "--no-annotate", "--python-version", "3.11", "--upgrade",
        *(["--find-links", find_links] if find_links else []),
    ]  # fmt: skip
    resolved = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Which build of torch is meant (+cpu, +cu130) is this machine's affair.
    resolved = re.sub(r"(?m)^(torch==[0-9.]+)\+\w+$", r"\1", resolved)
    CONSTRAINTS.write_text(HEADER + resolved)
    print(f"wrote {CONSTRAINTS}: {len(resolved.splitlines())} packages")


if __name__ == "__main__":
    main()
