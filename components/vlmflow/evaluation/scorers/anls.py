"""ANLS: how near an answer's letters are to the expected ones, for text read from documents.

    1 - NL if NL < threshold, else 0;  NL = Levenshtein distance / length of the longer text

Biten et al., "Scene Text Visual Question Answering", ICCV 2019, arXiv:1905.13648, section 4.1, with
its threshold of 0.5; of several expected answers the nearest counts. Blanks are joined and case is
ignored, as in the evaluation of DocVQA (Mathew et al., WACV 2021, arXiv:2007.00398).
"""


class Anls:
    """The score of an answer against one expected text."""

    def __init__(self, threshold: float = 0.5) -> None:
        # Here, so that who does not ask for ANLS needs no rapidfuzz.
        from rapidfuzz.distance import Levenshtein

        self._distance = Levenshtein.normalized_distance
        self._threshold = threshold

    def __call__(self, text: str, expected: str) -> float:
        distance = self._distance(_plain(text), _plain(expected))
        return 1.0 - distance if distance < self._threshold else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
