"""VQA accuracy: an answer is right when three other annotators gave it.

    accuracy = mean over the annotators of min(1, how many others gave this answer / 3)

Antol et al., "VQA: Visual Question Answering", ICCV 2015, arXiv:1505.00468, section 3; the mean
over all choices of nine of the ten annotators and the normalisation are those of
https://visualqa.org/evaluation.html. Its code leaves answers on which all annotators agree as they
are written; here both sides are normalised always, so that "none" is as good as "none".
"""

import re
from collections import Counter
from typing import Any

from vlmflow.evaluation.answer import references

MIN_ANNOTATORS = 4  # with fewer, no answer could reach 1
_ENOUGH = 3  # other annotators who gave the same answer

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(n) for n, word in enumerate(_NUMBER_WORDS.split())}
_ARTICLES = frozenset(("a", "an", "the"))
_PUNCTUATION = ";:/'[]\"()=+\\_><@`,?"
_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # but not that of 0.5

# Written without their apostrophe they are taken for the same words. "hell", "ill", "its", "shell",
# "wed", "well", "were" and others that are words of their own are not among them.
_APOSTROPHES = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's i'm i've isn't it'd it'll ma'am might've mightn't must've mustn't "
    "needn't not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's "
    "someone'd someone'll someone's something'd something'll that's there'd there're there's "
    "they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've "
    "when's where'd where's where've who'd who'll who's who've why'll why're why's won't "
    "would've wouldn't y'all you'd you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _APOSTROPHES.split()}


def vqa_accuracy(text: str, expected: Any) -> float | None:
    """The accuracy of an answer; None with fewer than MIN_ANNOTATORS answers to compare with."""
    given = references(expected)
    if len(given) < MIN_ANNOTATORS:
        return None
    num_same = Counter(map(normalize_vqa, given))[normalize_vqa(text)]
    # Those who gave the answer see one less among the others.
    among_them = num_same * min(1.0, (num_same - 1) / _ENOUGH)
    among_others = (len(given) - num_same) * min(1.0, num_same / _ENOUGH)
    return (among_them + among_others) / len(given)


def normalize_vqa(text: str) -> str:
    """Digits for number words, no articles, no punctuation, contractions with apostrophes."""
    words = _without_punctuation(" ".join(text.split())).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """A sign beside a blank goes; one between letters becomes a blank: 1/2 -> 1 2.

    In a text with a comma between digits all signs go: 10,000 -> 10000.
    """
    has_number = _DIGIT_COMMA_DIGIT.search(text) is not None
    cleaned = text
    for sign in _PUNCTUATION:
        goes = has_number or f"{sign} " in text or f" {sign}" in text
        cleaned = cleaned.replace(sign, "" if goes else " ")
    return _PERIOD.sub("", cleaned)
