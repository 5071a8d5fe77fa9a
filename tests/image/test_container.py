"""What is in the image and who it runs as: built for real, run without rights or network."""

import json
import subprocess
from pathlib import Path

import pytest

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


def test_any_user_of_group_0_will_do(containers):
    code = (
        "import os, pathlib; place = pathlib.Path(os.environ['HF_HOME']); place.mkdir(); "
        "(place / 'file').write_text(''); print(os.getuid(), pathlib.Path.home())"
    )
    printed = containers.python(code, options=("--user=1000730000:0",))
    assert printed == "1000730000 /var/cache/vlmflow\n"


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
    importlib.import_module(name)
import mlflow.server, sklearn, scipy.stats, pandas, matplotlib.pyplot, torch, transformers
import pyarrow.parquet, sacrebleu, rouge_score.rouge_scorer
print(len(names) > 200, torch.__version__)
"""
    assert containers.python(code) == "True 2.13.0+cpu\n"


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
    script = (Path(__file__).parents[2] / "tools/sbom.py").read_text()
    document = json.loads(containers.python(script))
    purls = [each["purl"] for each in document["components"]]
    assert "pkg:pypi/torch@2.13.0%2Bcpu" in purls
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in purls)
    assert document["metadata"]["component"]["version"] == __version__
    # What the lock names and ours, and nothing else.
    lock = (Path(__file__).parents[2] / "constraints/image-cpu.txt").read_text()
    assert sum(purl.startswith("pkg:pypi/") for purl in purls) == lock.count("==") + 1
