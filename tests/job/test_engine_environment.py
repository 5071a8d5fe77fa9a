"""What the engine's process is started with, and what of the user's is left as it is."""

import os
from pathlib import Path

import pytest

from vlmflow.job.engine_environment import engine_environment


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_threads_sleep_while_they_wait(tmp_path: Path):
    assert engine_environment({}, tmp_path)["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_how_the_user_lets_them_wait_stays(tmp_path: Path, name: str):
    made = engine_environment({name: "17"}, tmp_path)
    assert made[name] == "17"
    assert name == "OMP_WAIT_POLICY" or "OMP_WAIT_POLICY" not in made


@pytest.mark.parametrize(
    ("limit", "num_threads"),
    [("250000 100000", "2"), ("50000 100000", "1"), ("800000 100000", None), ("max 100000", None)],
)
def test_there_are_no_more_threads_than_a_container_pays_for(
    tmp_path: Path, cores: None, limit: str, num_threads: str | None
):
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert engine_environment({}, tmp_path).get("OMP_NUM_THREADS") == num_threads


@pytest.mark.parametrize(("quota", "num_threads"), [("300000", "3"), ("-1", None)])
def test_limits_of_older_kernels_are_read(
    tmp_path: Path, cores: None, quota: str, num_threads: str | None
):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert engine_environment({}, tmp_path).get("OMP_NUM_THREADS") == num_threads


def test_the_users_number_of_threads_stays(tmp_path: Path, cores: None):
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert engine_environment({"OMP_NUM_THREADS": "5"}, tmp_path)["OMP_NUM_THREADS"] == "5"


def test_the_rest_of_the_environment_is_there(tmp_path: Path):
    assert engine_environment({"HF_HOME": "somewhere"}, tmp_path)["HF_HOME"] == "somewhere"
