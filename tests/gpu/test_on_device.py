"""What a GPU is asked of whole engines, rehearsed on a CPU; and a difference is found."""

from dataclasses import replace

import pytest

from tests.gpu.checkpoints import FAMILIES
from tests.gpu.engine_checks import SCHEDULES, check_invariance, check_parity

FAMILY = FAMILIES[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return FAMILY.save(tmp_path_factory.mktemp("tiny"))


def test_answers_are_those_of_transformers_under_every_schedule(folder):
    found = check_parity(FAMILY, folder, "cpu", count=8, schedules=list(SCHEDULES))
    assert found["num_answers"] == 8
    assert set(found["near_ties"]) == set(SCHEDULES)


def test_another_checkpoint_is_not_taken_for_the_same(folder, tmp_path, monkeypatch):
    from tests.tiny_llava import save_tiny_llava

    other = save_tiny_llava(tmp_path, seed=1)
    references = FAMILY.references(other, 3, "cpu")
    monkeypatch.setattr(type(FAMILY), "references", lambda *_: references)
    with pytest.raises(AssertionError):
        check_parity(replace(FAMILY), folder, "cpu", count=3, schedules=["as it comes"])


def test_logits_that_differ_between_batches_are_found(folder, monkeypatch):
    found = check_invariance(FAMILY, folder, "cpu", batch_size=4, tolerance=0.5)
    assert found["batch_size"] == 4
    from tests.gpu import engine_checks

    own = engine_checks._logits

    def drifting(folder, messages, device):
        return [rows + 1e-3 * (len(messages) > 1) for rows in own(folder, messages, device)]

    monkeypatch.setattr(engine_checks, "_logits", drifting)
    with pytest.raises(AssertionError, match="differ by 1.00e-03 in another batch"):
        check_invariance(FAMILY, folder, "cpu", batch_size=4, tolerance=0.0)
