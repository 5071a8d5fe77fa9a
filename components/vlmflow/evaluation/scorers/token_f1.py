"""Token F1 as SQuAD defines it (Rajpurkar et al., EMNLP 2016, arXiv:1606.05250, section 6.1)."""

from collections import Counter

from vlmflow.evaluation.scorers.match import normalize


def token_f1(text: str, expected: str) -> float:
    """The harmonic mean of precision and recall over the words that both have, as bags.

    Both are normalised first. As in SQuAD 2.0, if either has no word left, they must both.
    """
    words, expected_words = normalize(text).split(), normalize(expected).split()
    if not words or not expected_words:
        return float(words == expected_words)
    num_common = (Counter(words) & Counter(expected_words)).total()
    return 2 * num_common / (len(words) + len(expected_words))
