"""The bill of materials, made of this environment."""

import json
import platform
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path

from tools.sbom import bill

SCRIPT = Path(__file__).parents[2] / "tools/sbom.py"
STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u10
Description: GNU C Library
 that has: a colon in a second line

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
"""


def test_each_distribution_is_named_once_with_its_version_and_licence(tmp_path):
    document = bill(list(distributions()), tmp_path / "none")
    by_purl = {each["purl"]: each for each in document["components"]}
    assert len(by_purl) == len(document["components"])
    pillow = by_purl[f"pkg:pypi/pillow@{version('pillow')}"]
    assert pillow["licenses"] == [{"expression": "MIT-CMU"}]
    assert "libwebp" in {part["name"] for part in pillow["components"]}, "what its wheel carries"


def test_dependencies_are_those_that_are_there(tmp_path):
    document = bill(list(distributions()), tmp_path / "none")
    edges = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    known = {each["purl"] for each in document["components"] if "cpe" not in each}
    assert set(edges) == known
    assert all(set(needed) <= known for needed in edges.values())
    ours = next(purls for ref, purls in edges.items() if ref.startswith("pkg:pypi/vlmflow@"))
    assert [purl.split("@")[0] for purl in ours] == ["pkg:pypi/msgpack", "pkg:pypi/pydantic"]


def test_debian_packages_are_those_that_are_installed(tmp_path):
    (tmp_path / "status").write_text(STATUS)
    document = bill([], tmp_path / "status")
    python, *packages = document["components"]
    assert python["version"] == platform.python_version()
    assert [each["purl"] for each in packages] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64"
    ]


def test_the_script_is_whole_by_itself_and_gives_the_same_bytes_twice():
    def run() -> bytes:
        command = [sys.executable, "-I", "-"]
        return subprocess.run(
            command, input=SCRIPT.read_bytes(), check=True, stdout=subprocess.PIPE
        ).stdout

    first = run()
    assert json.loads(first)["bomFormat"] == "CycloneDX"
    assert first == run()
