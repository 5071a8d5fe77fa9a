"""A tracking server's failure in a line, whatever MLflow makes of it."""

import pytest
from mlflow.exceptions import MlflowException

from vlmflow.tracking.lifecycle import connect
from vlmflow.tracking.reason import reason_of


def test_a_server_that_is_not_there_is_told_by_its_address():
    with pytest.raises(MlflowException) as caught:
        connect("http://127.0.0.1:9").get_experiment_by_name("x")
    assert reason_of(caught.value) == "the tracking server at http://127.0.0.1:9 cannot be reached"


def test_a_password_in_the_address_is_not_told():
    with pytest.raises(MlflowException) as caught:
        connect("http://me:secret@127.0.0.1:9").get_experiment_by_name("x")
    assert reason_of(caught.value) == "the tracking server at http://127.0.0.1:9 cannot be reached"
    assert reason_of(ValueError("at http://me:secret@h/x")) == "ValueError: at http://h/x"


def test_any_other_failure_is_its_first_line():
    assert reason_of(MlflowException("no such run\nat all")) == "no such run"
    assert reason_of(ValueError("one\ntwo")) == "ValueError: one"
    assert reason_of(ValueError()) == "ValueError: "
    assert len(reason_of(ValueError("x" * 1000))) == 300
