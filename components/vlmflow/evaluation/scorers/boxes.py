"""Detection boxes: how well those of an answer cover the expected ones.

Both are lists, in JSON, of {"label": "cat", "box": [x1, y1, x2, y2]}; `bbox` and `bbox_2d` will do
for `box`, and the label may be missing. Boxes of one label are paired one to one so that the sum
of their intersections over unions is largest.
"""

from collections.abc import Sequence
from typing import Any

from vlmflow.evaluation.scorers.json_answer import as_json, read_json_answer

_BOX_NAMES = ("box", "bbox", "bbox_2d")

Box = tuple[float, float, float, float]  # left, top, right, bottom


class BoxesF1:
    """F1 of the pairs whose intersection over union is at least `iou`."""

    def __init__(self, iou: float = 0.5) -> None:
        self._pairs = _Pairs()
        self._iou = iou

    def __call__(self, text: str, expected: Any) -> float | None:
        boxes, targets = _of_answer(text), _by_label(as_json(expected))
        if targets is None:
            return None
        if boxes is None:
            return 0.0
        count = sum(map(len, boxes.values())) + sum(map(len, targets.values()))
        num_matched = sum(value >= self._iou for value in self._pairs.ious(boxes, targets))
        return 2 * num_matched / count if count else 1.0


class BoxesIou:
    """Mean intersection over union of the pairs; a box without a partner counts as 0."""

    def __init__(self) -> None:
        self._pairs = _Pairs()

    def __call__(self, text: str, expected: Any) -> float | None:
        boxes, targets = _of_answer(text), _by_label(as_json(expected))
        if targets is None:
            return None
        if boxes is None:
            return 0.0
        values = self._pairs.ious(boxes, targets)
        num_boxes = sum(
            max(len(boxes.get(label, ())), len(targets.get(label, ())))
            for label in boxes.keys() | targets.keys()
        )
        return sum(values) / num_boxes if num_boxes else 1.0


def intersection_over_union(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / (_area(one) + _area(other) - common)


class _Pairs:
    def __init__(self) -> None:
        from scipy.optimize import linear_sum_assignment

        self._assign = linear_sum_assignment

    def ious(self, boxes: dict[str, list[Box]], targets: dict[str, list[Box]]) -> list[float]:
        """Of the best pairs, label by label."""
        found = []
        for label in boxes.keys() & targets.keys():
            table = [[intersection_over_union(b, t) for t in targets[label]] for b in boxes[label]]
            rows, columns = self._assign(table, maximize=True)
            found += [table[row][column] for row, column in zip(rows, columns, strict=True)]
        return found


def _of_answer(text: str) -> dict[str, list[Box]] | None:
    try:
        return _by_label(read_json_answer(text))
    except ValueError:
        return None


def _by_label(value: Any) -> dict[str, list[Box]] | None:
    """Boxes by label; None if the value is no list of boxes."""
    found: dict[str, list[Box]] = {}
    for item in value if isinstance(value, list) else [None]:
        numbers = item
        label = ""
        if isinstance(item, dict):
            numbers = next((item[name] for name in _BOX_NAMES if name in item), None)
            label = str(item.get("label", "")).strip().lower()
        box = _box(numbers)
        if box is None:
            return None
        found.setdefault(label, []).append(box)
    return found


def _box(numbers: Any) -> Box | None:
    if not isinstance(numbers, Sequence) or isinstance(numbers, str) or len(numbers) != 4:
        return None
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        return None
    left, top, right, bottom = map(float, numbers)
    return (min(left, right), min(top, bottom), max(left, right), max(top, bottom))


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
