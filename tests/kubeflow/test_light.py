"""Compiling is light: no torch, and nothing of the job that reads or writes."""

import subprocess
import sys

from tests.job_processes import ROOT

_CODE = """
import runpy, sys
for name in ("torch", "transformers", "triton", "mlflow", "boto3", "airflow", "pyarrow"):
    sys.modules[name] = None  # importing it fails
sys.argv = ["pipeline", "--compile", sys.argv[2], *sys.argv[3:]]
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = [name for name in sys.modules if name.startswith(("vlmflow.job.store.s3", "vlmflow_engine."
    "engine", "vlmflow_engine.runner"))]
assert heavy == [], heavy
"""


def test_a_pipeline_is_compiled_and_its_parameters_printed_without_torch(tmp_path):
    for name in ("vlm_batch_inference_pipeline", "vlm_compare_pipeline"):
        path = ROOT / "pipelines" / f"{name}.py"
        code = _CODE.replace("{path!r}", repr(str(path)))
        command = [sys.executable, "-W", "error", "-c", code, "-", str(tmp_path / "p.yaml")]
        subprocess.run(command, check=True, timeout=60, cwd=tmp_path)
        assert (tmp_path / "p.yaml").read_text().count("\n---\n") == 1


def test_the_package_itself_imports_nothing():
    code = "import sys, vlmflow.kubeflow; assert 'kfp' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
