"""Whether an answer is the expected one: exactly, or but for case, punctuation and articles."""

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(text: str, expected: str) -> float:
    """1 if they are the same but for blanks at the ends: as in report.json."""
    return float(text.strip() == expected.strip())


def normalized_match(text: str, expected: str) -> float:
    """1 if they are the same after `normalize`."""
    return float(normalize(text) == normalize(expected))


def normalize(text: str) -> str:
    """Lower case without ASCII punctuation, English articles and superfluous blanks.

    In the order of SQuAD's evaluation script (Rajpurkar et al., EMNLP 2016, arXiv:1606.05250).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
