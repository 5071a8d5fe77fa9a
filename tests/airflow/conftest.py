"""Tests that run in .venv-airflow; where Airflow is missing there is nothing to collect."""

from importlib.util import find_spec

if find_spec("airflow") is None:
    collect_ignore_glob = ["*"]
