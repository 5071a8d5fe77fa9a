"""The house itself: packages, light imports, one version."""

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_package_list_is_that_of_the_folders():
    listed = set(setup_cfg()["options"]["packages"].split())
    found = {
        ".".join(file.parent.relative_to(root).parts)
        for root in (ROOT / "engine", ROOT / "components")
        for file in root.rglob("__init__.py")
    }
    assert listed == found


def test_every_module_is_in_a_package():
    for root in (ROOT / "engine", ROOT / "components"):
        for file in root.rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file


def test_every_file_that_is_no_module_is_package_data():
    listed = set()
    for package, patterns in setup_cfg()["options.package_data"].items():
        root = ROOT / ("engine" if package.startswith("vlmflow_engine") else "components")
        for pattern in patterns.split(","):
            found = set((root / package.replace(".", "/")).glob(pattern.strip()))
            assert found, pattern
            listed |= found
    there = {
        file
        for root in (ROOT / "engine", ROOT / "components")
        for file in root.rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc") and "egg-info" not in str(file)
    }
    assert listed == there


def test_one_version_everywhere():
    import vlmflow
    import vlmflow_engine

    assert setup_cfg()["metadata"]["version"] == vlmflow.__version__ == vlmflow_engine.__version__


@pytest.mark.parametrize(
    "module",
    [
        "vlmflow",
        "vlmflow.cli",
        "vlmflow.evaluation.phase",
        "vlmflow.job.run",
        "vlmflow.packaging.served_model",
        "vlmflow.tracking.mlflow_run",
        "vlmflow_engine",
        "vlmflow_engine.vl",
        "vlmflow_engine.inputs.builder",
        "vlmflow_engine.scheduler.scheduler",
    ],
)
def test_the_light_half_imports_without_torch(module):
    code = f"import sys; sys.modules['torch'] = sys.modules['transformers'] = None; import {module}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_need_no_torch_until_a_pipeline_is_made():
    code = (
        "import sys; from vlmflow_engine import pipeline, GenerationConfig, PytorchEngineConfig, "
        "Response; assert 'torch' not in sys.modules; from vlmflow_engine import Pipeline; "
        "assert 'torch' in sys.modules; assert callable(pipeline)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_longer_than_a_reader_likes():
    for root in ("engine", "components", "examples", "tools"):
        for file in (ROOT / root).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 350, file
