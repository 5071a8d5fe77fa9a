"""What is in the image and who it runs as: built for real, run without rights or network."""

import json
import subprocess

import pytest

from tests.image.conftest import ROOT
from tools.image.build import size_bytes
from tools.image.podman import podman
from vlmflow import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]  # the first build takes its minutes

# The CPU's image is 1.8 GB: torch 0.57, what MLflow wants (pyarrow, SciPy, pandas, scikit-learn,
# matplotlib) 0.6, transformers 0.13, the base 0.2. More than this is something that crept in.
LARGEST = 2.0e9


def test_it_says_its_version_as_a_user_who_is_not_root(containers):
    done = containers.run("--version")
    assert (done.returncode, done.stdout) == (0, f"vlmflow {__version__}\n"), done.stderr
    user = containers.python("import os; print(os.getuid(), os.getgid())")
    assert user == "10001 0\n"


def test_help_is_what_it_does_without_arguments(containers):
    done = containers.run()
    assert done.returncode == 0
    assert done.stdout.startswith("usage: vlmflow")


@pytest.mark.parametrize("user", ["1000730000:0", "10001:10001"])  # OpenShift's, and deploy/'s
def test_users_of_other_numbers_can_write_the_caches(containers, user):
    code = (
        "import os, pathlib; place = pathlib.Path(os.environ['HF_HOME']); place.mkdir(); "
        "(place / 'file').write_text(''); print(os.getuid(), pathlib.Path.home())"
    )
    printed = containers.python(code, options=(f"--user={user}",))
    assert printed == f"{user.split(':')[0]} /var/cache/vlmflow\n"


def test_only_the_declared_places_can_be_written(containers):
    code = """
import os, tempfile
found = []
for folder, _, _ in os.walk("/", onerror=lambda error: None):
    if folder.startswith(("/proc", "/sys", "/dev")):
        continue
    try:
        tempfile.TemporaryFile(dir=folder).close()
        found.append(folder)
    except OSError:
        pass
print(sorted(found))
"""
    options = ("--read-only-tmpfs=false", "--tmpfs=/tmp")
    assert containers.python(code, options=options) == "['/tmp', '/var/cache/vlmflow']\n"


def test_nothing_in_it_builds_installs_or_changes_the_user(containers):
    code = """
import importlib.util, json, os, shutil, stat
programs = ("gcc", "cc", "g++", "c++", "clang", "make", "ld", "as", "pip", "pip3", "uv", "git")
modules = ("pip", "ensurepip", "wheel", "pytest", "kfp", "triton")
risen = [
    os.path.join(folder, name)
    for folder, _, names in os.walk("/") if not folder.startswith(("/proc", "/sys"))
    for name in names
    if stat.S_ISREG((mode := os.lstat(os.path.join(folder, name)).st_mode))
    and mode & (stat.S_ISUID | stat.S_ISGID)
]
print(json.dumps([
    [name for name in programs if shutil.which(name)],
    [name for name in modules if importlib.util.find_spec(name)],
    risen,
]))
"""
    assert json.loads(containers.python(code)) == [[], [], []]
    # Nor for the base's own Python, which is not on the environment's path.
    code = "import importlib.util as u; print([n for n in ('pip', 'setuptools') if u.find_spec(n)])"
    options = ("--entrypoint=/bin/sh",)
    done = containers.run("-c", f'PATH=${{PATH#*:}} python3 -c "{code}"', options=options)
    assert done.stdout == "[]\n", done.stderr


def test_every_module_of_ours_can_be_imported(containers):
    code = """
import importlib, pkgutil, vlmflow, vlmflow_engine
skipped = ("vlmflow.airflow", "vlmflow.kubeflow", "vlmflow_engine.kernels")
names = [
    module.name
    for package in (vlmflow, vlmflow_engine)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".", lambda name: None)
    if not module.name.startswith(skipped) and not module.name.endswith("__main__")
]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name == "triton", error  # what only a GPU needs
import mlflow.server, sklearn, scipy.stats, pandas, matplotlib.pyplot, torch, transformers
import pyarrow.parquet, sacrebleu, rouge_score.rouge_scorer
print(len(names) > 200, torch.__version__)
"""
    assert containers.python(code) == "True 2.13.0+cpu\n"


def test_the_kernels_of_the_cpu_are_there_and_load(containers):
    if not (ROOT / "engine/vlmflow_engine/kernels/cpu/build.py").is_file():
        pytest.skip("there are no C++ kernels in these sources")
    code = """
import pathlib, torch
from vlmflow_engine.kernels.cpu import build
from vlmflow_engine.kernels.cpu.library import CpuLibrary
path = pathlib.Path(build.__file__).parent / build.Sources().library_name()
print(path.is_file(), CpuLibrary(path).level in ("plain", "avx2", "avx512", "avx512_bf16"))
"""
    assert containers.python(code) == "True True\n"


@pytest.mark.parametrize(
    "arguments, code",
    [
        (("run", "--manifest", "/nowhere.jsonl", "--model", "/no", "--output", "/tmp/out"), 2),
        (("no-such-command",), 2),
        (("compare", "/nowhere/a", "/nowhere/b"), 2),
    ],
)
def test_exit_codes_are_those_of_the_command(containers, arguments, code):
    done = containers.run(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_its_labels_say_what_it_is_made_of(image):
    shown = podman("image", "inspect", image, stdout=subprocess.PIPE).stdout
    (found,) = json.loads(shown)
    labels = found["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert "Healthcheck" not in found
    assert found["Config"]["Entrypoint"] == ["vlmflow"]
    # Nothing of this machine's index or folders is in what is shipped.
    assert "PIP_" not in shown and "pypi" not in shown


def test_it_is_no_larger_than_it_was(image):
    assert size_bytes(image) < LARGEST


def test_its_bill_of_materials_names_torch_and_debians_packages(containers):
    script = (ROOT / "tools/sbom.py").read_text()
    document = json.loads(containers.python(script))
    purls = [each["purl"] for each in document["components"]]
    assert "pkg:pypi/torch@2.13.0%2Bcpu" in purls
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in purls)
    assert document["metadata"]["component"]["version"] == __version__
    assert "pkg:generic/python@3.11" in " ".join(purls)
    # What the lock names and ours, and nothing else.
    lock = (ROOT / "constraints/image-cpu.txt").read_text()
    assert sum(purl.startswith("pkg:pypi/") for purl in purls) == lock.count("==") + 1
