"""By what MLflow knows a model again: the same of a job that ran it and of one that was logged."""

from pathlib import PurePath
from typing import Any

# What makes the same checkpoint another thing to compare: numbers differ, or how they are kept.
_KEY = ("dtype", "quant", "quant_policy")


def engine_key(engine: dict[str, Any]) -> str:
    """`engine` is what the engine resolved."""
    return " ".join(f"{name}={value}" for name, value in _key(engine).items())


def model_params(model: str, digest: str, engine: dict[str, Any]) -> dict[str, str]:
    """The parameters by which the Models page tells models apart."""
    return {"path": model, "digest": digest, **_key(engine)}


def _key(engine: dict[str, Any]) -> dict[str, str]:
    return {name: str(engine[name]) for name in _KEY if engine.get(name) is not None}


def shown_name(model: str, digest: str) -> str:
    return f"{PurePath(model).name}-{digest[:8]}"


def registered_tags(report: dict[str, Any]) -> dict[str, str]:
    """A run's tags of the registered model that it ran; none if it ran another."""
    registered = report["job"].get("registered_model") or {}
    names = {"uri": "model.uri", "name": "model.name", "version": "model.version"}
    return {tag: str(registered[name]) for name, tag in names.items() if registered.get(name)}
