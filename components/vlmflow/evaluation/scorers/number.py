"""Relaxed accuracy: a number that is near enough, or the same text.

Methani et al., "PlotQA", WACV 2020, arXiv:1909.00997, allow 5 % of the expected number; Masry et
al., "ChartQA", Findings of ACL 2022, arXiv:2203.10244, report it as relaxed accuracy.
"""

import math


class RelaxedAccuracy:
    """1 if answer and expected text are numbers no further apart than `tolerance` of the expected.

    Without two numbers, or where 0 is expected, they must be the same text but for case.
    """

    def __init__(self, tolerance: float = 0.05) -> None:
        self._tolerance = tolerance

    def __call__(self, text: str, expected: str) -> float:
        number, target = to_number(text), to_number(expected)
        if number is None or target is None:
            return float(text.strip().lower() == expected.strip().lower())
        # Without the last term 105 would be further from 100 than 5 %, by one bit.
        return float(abs(number - target) <= self._tolerance * abs(target) + 1e-12 * abs(target))


def to_number(text: str) -> float | None:
    """A number as people write it: 1,234.5, $12, 45 % (0.45); None for any other text."""
    plain = text.strip().rstrip(".").replace(",", "").lstrip("$€£ ")
    is_percentage = plain.endswith("%")
    try:
        number = float(plain.rstrip("% "))
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return number / 100 if is_percentage else number
