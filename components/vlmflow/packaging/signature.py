"""What a served model takes and gives, in MLflow's types."""

from dataclasses import asdict
from typing import Any

from vlmflow_engine.generation import GenerationConfig

OUTPUTS = ("text", "finish_reason", "prompt_tokens", "completion_tokens", "error")
PROMPT, IMAGE = "prompt", "image"

# Options that a caller may give with a request, with their types in MLflow.
_PARAMS = {
    "max_new_tokens": "long",
    "do_sample": "boolean",
    "temperature": "double",
    "top_k": "long",
    "top_p": "double",
    "min_p": "double",
    "repetition_penalty": "double",
    "random_seed": "long",
}


def make_signature(generation: dict[str, Any]) -> Any:
    """Return the ModelSignature; `generation` are the options that a request may leave out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    values = asdict(GenerationConfig()) | generation
    columns = [
        ColSpec("string", OUTPUTS[0]),
        ColSpec("string", OUTPUTS[1]),
        ColSpec("long", OUTPUTS[2]),
        ColSpec("long", OUTPUTS[3]),
        ColSpec("string", OUTPUTS[4], required=False),
    ]
    return ModelSignature(
        # An image is bytes, or a text in base64, or a URL: MLflow has no type that is either.
        inputs=Schema(
            [ColSpec("string", PROMPT), ColSpec(AnyType(), IMAGE, required=False)],
        ),
        outputs=Schema(columns),
        params=ParamSchema(
            [ParamSpec(name, kind, _default(values[name], kind)) for name, kind in _PARAMS.items()]
        ),
    )


def make_input_example() -> list[dict[str, Any]]:
    """One request: what MLflow shows of how a model is asked."""
    # A red pixel.
    image = (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLv"
        "AAAAAElFTkSuQmCC"
    )
    return [{PROMPT: "What is in this picture?", IMAGE: image}]


def _default(value: Any, kind: str) -> Any:
    """MLflow refuses a whole number where it wants a fraction."""
    return float(value) if kind == "double" and value is not None else value
