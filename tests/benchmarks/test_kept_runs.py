"""A benchmark that was killed goes on where it was."""

import pytest

from benchmarks.kept_runs import KeptRuns


def test_what_was_measured_is_not_measured_again(tmp_path):
    first = KeptRuns(tmp_path / "runs").get_or_make("W1-one-0", lambda: {"seconds": 3.0})
    again = KeptRuns(tmp_path / "runs").get_or_make("W1-one-0", lambda: pytest.fail("measured"))
    assert first == again == {"seconds": 3.0}


def test_a_run_that_fails_leaves_nothing(tmp_path):
    runs = KeptRuns(tmp_path)

    def fails() -> dict:
        raise SystemExit("killed")

    with pytest.raises(SystemExit):
        runs.get_or_make("W1-one-0", fails)
    assert runs.get("W1-one-0") is None


def test_forgetting_measures_anew(tmp_path):
    runs = KeptRuns(tmp_path)
    runs.get_or_make("W1-one-0", lambda: {"seconds": 3.0})
    runs.forget()
    assert runs.get_or_make("W1-one-0", lambda: {"seconds": 2.0}) == {"seconds": 2.0}
