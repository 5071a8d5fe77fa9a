"""Render deploy/ with kubectl into the files that tests/kubeflow/deploy validates.

    python -m tools.render_deploy

Where there is no kubectl the tests go by those files: each says what of deploy/ it was made of.
"""

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
GOLDEN = ROOT / "tests/kubeflow/deploy/golden"
OVERLAYS = tuple(sorted(path.name for path in (DEPLOY / "overlays").iterdir()))


def render(overlay: str) -> str:
    """What `kubectl apply -k` would send. Raises subprocess.CalledProcessError."""
    command = ["kubectl", "kustomize", str(DEPLOY / "overlays" / overlay)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def header() -> str:
    """The first line of a rendered file: the digest of all that deploy/ holds."""
    digest = hashlib.sha256()
    for path in sorted(path for path in DEPLOY.rglob("*") if path.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(DEPLOY).as_posix()} {len(content)}\n".encode() + content)
    return f"# deploy/ {digest.hexdigest()}, by python -m tools.render_deploy\n"


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for overlay in OVERLAYS:
        (GOLDEN / f"{overlay}.yaml").write_text(header() + render(overlay))
