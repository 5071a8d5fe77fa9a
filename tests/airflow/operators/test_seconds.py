"""Times that the author of a DAG gives."""

import pytest

from vlmflow.airflow.operators.seconds import check_seconds


@pytest.mark.parametrize("value", ["often", None, -1, True, float("nan"), 0])
def test_a_time_that_is_none_is_refused_when_the_dag_is_read(value):
    with pytest.raises(ValueError, match="poll_interval must be a number of seconds, more than 0"):
        check_seconds("poll_interval", value)


def test_a_time():
    assert (check_seconds("x", 5), check_seconds("x", 0, is_zero_allowed=True)) == (5.0, 0.0)
