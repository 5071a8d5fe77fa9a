"""ROUGE-L by the example of its paper, chrF by sacrebleu's own numbers."""

import pytest
from sacrebleu import sentence_chrf

from vlmflow.evaluation.scorers.overlap import ChrF, RougeL


@pytest.mark.parametrize(
    ("text", "score"),
    [("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4)],
)
def test_rouge_l_of_the_sentences_in_lins_paper(text, score):
    """ROUGE: A Package for Automatic Evaluation of Summaries, section 3.1, S2 and S3."""
    assert RougeL()(text, "police killed the gunman") == pytest.approx(score)


def test_chrf_is_sacrebleus_as_a_share():
    text, expected = "The cat is on mat.", "The cat sat on the mat."
    score = sentence_chrf(text, [expected]).score
    assert 20 < score < 80
    assert ChrF()(text, expected) == pytest.approx(score / 100)
    assert ChrF()(expected, expected) == pytest.approx(1)
