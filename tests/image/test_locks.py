"""constraints/image-*.txt: hashes, the versions that were tested, and the right torch."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.layout.test_layout import setup_cfg
from tools.lock import IMAGES, resolve_image

FOLDER = Path(__file__).parents[2] / "constraints"
# The file of PyTorch's own index, which PyPI does not have; see docs/image.md.
CPU_TORCH = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"


def read_lock(name: str) -> dict[str, tuple[str, set[str]]]:
    """Version and hashes of each package."""
    text = (FOLDER / f"{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            requirement, *hashes = line.split(" --hash=sha256:")
            package, _, version = requirement.strip().partition("==")
            found[package] = (version, {each.strip() for each in hashes})
    return found


def known_versions() -> dict[str, str]:
    lines = (FOLDER / "venv.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("name", IMAGES)
def test_every_package_has_a_version_and_hashes(name):
    lock = read_lock(name)
    assert len(lock) > 100
    for package, (version, hashes) in lock.items():
        assert re.fullmatch(r"[0-9][^ ;]*", version), package
        assert hashes and all(re.fullmatch(r"[0-9a-f]{64}", each) for each in hashes), package


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_the_versions_that_were_tested(name):
    tested = known_versions()
    for package, (version, _) in read_lock(name).items():
        if package in tested:
            assert version.removesuffix("+cpu") == tested[package], package


@pytest.mark.parametrize("name", IMAGES)
def test_what_the_extras_ask_for_is_in_the_lock(name):
    lock = read_lock(name)
    options = setup_cfg()
    lines = options["options"]["install_requires"].split("\n")
    for extra in IMAGES[name]:
        lines += options["options.extras_require"][extra].split("\n")
    for line in filter(None, lines):
        requirement = Requirement(line)
        version = lock[canonicalize_name(requirement.name)][0]
        assert requirement.specifier.contains(version), line


def test_only_the_cuda_image_has_triton_and_cuda():
    cpu, cuda = read_lock("image-cpu"), read_lock("image-cuda")
    assert not {package for package in cpu if package.startswith(("nvidia-", "triton", "cuda-"))}
    # The pair that PyPI's torch 2.13.0 asks for, and that our kernels are compiled with.
    assert (cuda["torch"][0], cuda["triton"][0]) == ("2.13.0", "3.7.1")
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} < set(cuda)


def test_the_cpu_images_torch_is_the_file_of_pytorchs_index():
    assert read_lock("image-cpu")["torch"] == ("2.13.0+cpu", {CPU_TORCH})


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_of_development_is_in_an_image(name):
    unwanted = {"pytest", "mypy", "ruff", "moto", "hypothesis", "peft", "uv", "pip", "kfp"}
    assert not unwanted & set(read_lock(name))


@pytest.mark.slow  # it asks the package index
@pytest.mark.parametrize("name", IMAGES)
def test_a_lock_is_what_resolving_it_again_gives(name, monkeypatch):
    monkeypatch.chdir(FOLDER.parent)
    assert resolve_image(name) == (FOLDER / f"{name}.txt").read_text()
