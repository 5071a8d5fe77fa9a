"""What an answer is worth: one file an idea, found by name through the registry."""

from vlmflow.evaluation.scorers.base import Scorer
from vlmflow.evaluation.scorers.registry import make_scorers, scorer_names

__all__ = ["Scorer", "make_scorers", "scorer_names"]
