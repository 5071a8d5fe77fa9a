"""Where a test may kill a job: harmless without the variable, and every place told in the docs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.job.chaos.scenarios import CHECKPOINT_POINTS, POINTS, RERUN_POINTS, TRACKING_POINTS
from vlmflow.job.crash_points import CRASH_VARIABLE, reached

ROOT = Path(__file__).parents[2]


def names_in_code() -> list[str]:
    """What `reached` is called with, anywhere in the job."""
    names = []
    for file in (ROOT / "components").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if is_call and node.func.id == "reached":
                constants = (x.value for x in ast.walk(node.args[0]) if isinstance(x, ast.Constant))
                names += constants
    return names


def test_the_list_in_the_docs_is_that_of_the_code():
    page = (ROOT / "docs" / "reliability.md").read_text()
    [table] = re.findall(r"## Crash points\n(.*?)\n## ", page, re.DOTALL)
    assert sorted(re.findall(r"^\| `([a-z-]+)`", table, re.MULTILINE)) == sorted(names_in_code())


def test_every_name_stands_in_one_place():
    assert len(names_in_code()) == len(set(names_in_code())) > 20


def test_every_point_is_one_of_the_chaos_suite():
    killed = {
        p.partition(":")[0] for p in POINTS + CHECKPOINT_POINTS + RERUN_POINTS + TRACKING_POINTS
    }
    assert killed == set(names_in_code())


def test_nothing_happens_without_the_variable_or_at_another_point(monkeypatch):
    monkeypatch.delenv(CRASH_VARIABLE, raising=False)
    reached("here")
    monkeypatch.setenv(CRASH_VARIABLE, "there")
    reached("here")


@pytest.mark.parametrize("wanted, times", [("here", 1), ("here:1", 1), ("here:3", 3)])
def test_the_process_is_killed_at_the_time_that_was_asked_for(wanted, times):
    code = (
        "from vlmflow.job.crash_points import reached\n"
        "for n in range(1, 5):\n    print(n, flush=True)\n    reached('other')\n    reached('here')"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code],
        env={CRASH_VARIABLE: wanted, "PYTHONPATH": f"{ROOT}/components:{ROOT}/engine"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.returncode == -9
    assert killed.stdout.split()[-1] == str(times)
