"""Gates: `accuracy >= -0.01 and images_per_second >= 0.95x` decides whether run B may follow run A.

    gate        one or more of `clause and clause`, `clause or clause`, `(gate)`; and before or
    clause      metric, then >= > <= or <, then a bound
    bound       0.8     as it stands: B's value is compared with it
                -0.01   with a sign: B's value less A's
                0.95x   with an x: B's value and so many times A's

Nothing is executed: the text is cut into words and read by the rules above. Both sides of a
comparison that differ by less than 1e-9 are equal, so that 0.89 is no more than 0.01 below 0.9.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlmflow.job.errors import SpecError

ALIAS = "accuracy"  # the first scorer, whatever it is called

_WORD = re.compile(
    r"\s*(?:(?P<bound>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?P<times>[xX])?(?![\w.]))"
    r"|(?P<comparison>>=|<=|>|<)|(?P<bracket>[()])|(?P<name>[A-Za-z_][\w.]*))"
)
_EQUAL = 9  # digits behind the point
_MAX_DEPTH = 50  # of brackets

_Kind = Literal["absolute", "difference", "ratio"]


class GateSyntaxError(SpecError):
    """The text is no gate; the message says where."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of both runs; None where a run does not know it."""

    a: float | None
    b: float | None


@dataclass(frozen=True, slots=True)
class Clause:
    metric: str
    comparison: str
    kind: _Kind
    bound: float
    text: str

    def outcome(self, measured: Measured) -> dict[str, Any]:
        """What was compared with the bound, and whether it held. Raises SpecError."""
        for run, value in (("A", measured.a), ("B", measured.b)):
            if value is None and (run == "B" or self.kind != "absolute"):
                raise SpecError(
                    f"gate {self.text!r}: {self.metric} of run {run} is not known; its results "
                    "have no report.json that says it"
                )
        assert measured.b is not None
        value, bound = measured.b, self.bound
        if self.kind == "difference":
            assert measured.a is not None
            value -= measured.a
        elif self.kind == "ratio":
            assert measured.a is not None
            bound *= measured.a
        return {
            "clause": self.text,
            "a": measured.a,
            "b": measured.b,
            "value": value,
            "bound": bound,
            "holds": _holds(value, self.comparison, bound),
        }


@dataclass(frozen=True, slots=True)
class Junction:
    """Several gates, all or any of which must hold."""

    word: Literal["and", "or"]
    parts: tuple["Gate", ...]


Gate = Clause | Junction


@dataclass(frozen=True, slots=True)
class _Word:
    kind: str  # a group of _WORD, or "end"
    text: str
    place: int


def parse_gate(text: str) -> Gate:
    """Read a gate. Raises GateSyntaxError."""
    return _Parser(text).gate()


def check_metrics(gate: Gate, known: Collection[str]) -> None:
    """Raise SpecError for a metric that does not exist."""
    for clause in clauses(gate):
        if clause.metric not in known:
            raise SpecError(
                f"gate: there is no metric {clause.metric!r}; there are {', '.join(known)}"
            )


def judge_gate(gate: Gate, text: str, known: Mapping[str, Measured]) -> dict[str, Any]:
    """Decide: `passed`, and the outcome of every clause. Raises SpecError."""
    check_metrics(gate, known)
    outcomes = {clause: clause.outcome(known[clause.metric]) for clause in clauses(gate)}

    def holds(part: Gate) -> bool:
        if isinstance(part, Clause):
            return bool(outcomes[part]["holds"])
        return (all if part.word == "and" else any)(holds(inner) for inner in part.parts)

    return {"gate": text, "passed": holds(gate), "clauses": list(outcomes.values())}


def clauses(gate: Gate) -> list[Clause]:
    """All clauses, in the order of the text."""
    if isinstance(gate, Clause):
        return [gate]
    return [clause for part in gate.parts for clause in clauses(part)]


def _holds(value: float, comparison: str, bound: float) -> bool:
    above = round(value - bound, _EQUAL)
    if comparison == ">=":
        return above >= 0
    if comparison == "<=":
        return above <= 0
    return above > 0 if comparison == ">" else above < 0


class _Parser:
    """Recursive descent: one method a rule."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words = self._cut(text)
        self._at = 0
        self._depth = 0

    def gate(self) -> Gate:
        gate = self._junction("or")
        if self._next.kind != "end":
            raise self._error("'and', 'or' or the end")
        return gate

    def _junction(self, word: Literal["and", "or"]) -> Gate:
        parts = [self._operand(word)]
        while self._is_keyword(word):
            self._at += 1
            parts.append(self._operand(word))
        return parts[0] if len(parts) == 1 else Junction(word, tuple(parts))

    def _operand(self, word: str) -> Gate:
        return self._junction("and") if word == "or" else self._clause_or_brackets()

    def _clause_or_brackets(self) -> Gate:
        if self._next.text != "(":
            return self._clause()
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._error(f"no more than {_MAX_DEPTH} brackets in one another")
        self._at += 1
        gate = self._junction("or")
        self._take("bracket", "')'", ")")
        self._depth -= 1
        return gate

    def _clause(self) -> Clause:
        if self._is_keyword("and") or self._is_keyword("or"):
            raise self._error("the name of a metric")
        metric = self._take("name", "the name of a metric")
        comparison = self._take("comparison", "one of >=, >, <=, <")
        bound = self._take("bound", "a number, such as 0.8, -0.01 or 0.95x")
        is_ratio = bound.text[-1] in "xX"
        is_signed = bound.text[0] in "+-"
        if is_ratio and is_signed:
            self._at -= 1
            raise self._error("a ratio without a sign, such as 0.95x")
        kind: _Kind = "ratio" if is_ratio else "difference" if is_signed else "absolute"
        return Clause(
            metric.text,
            comparison.text,
            kind,
            float(bound.text.rstrip("xX")),
            f"{metric.text} {comparison.text} {bound.text}",
        )

    @property
    def _next(self) -> _Word:
        return self._words[self._at]

    def _is_keyword(self, word: str) -> bool:
        return self._next.kind == "name" and self._next.text.lower() == word

    def _take(self, kind: str, wanted: str, text: str | None = None) -> _Word:
        word = self._next
        if word.kind != kind or (text is not None and word.text != text):
            raise self._error(wanted)
        self._at += 1
        return word

    def _cut(self, text: str) -> list[_Word]:
        words, place = [], 0
        while text[place:].strip():
            found = _WORD.match(text, place)
            if found is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                raise GateSyntaxError(
                    f"gate {text!r}: at character {place + 1} stands {text[place : place + 10]!r}, "
                    "which is no metric, comparison, number or bracket"
                )
            kind = next(k for k in ("bound", "comparison", "bracket", "name") if found[k])
            words.append(_Word(kind, found[kind], found.start(kind)))
            place = found.end()
        return [*words, _Word("end", "", len(text))]

    def _error(self, wanted: str) -> GateSyntaxError:
        word = self._next
        there = "the end" if word.kind == "end" else repr(word.text)
        return GateSyntaxError(
            f"gate {self._text!r}: at character {word.place + 1} must stand {wanted}, not {there}"
        )
