"""`ServedModel`: a logged model in MLflow's hands, in `pyfunc.load_model` or `mlflow models serve`.

The engine runs in this process and is loaded once. Threads may ask it at the same time: their rows
share batches.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException  # noqa: TID253
from mlflow.pyfunc import PythonModel, PythonModelContext  # noqa: TID253

from vlmflow.job.identity import model_digest
from vlmflow.job.model_folder import ModelFolder, ModelSource, find_stored
from vlmflow.job.registered_model import WEIGHTS, check_digest
from vlmflow.job.stored_model import StoredModel
from vlmflow.packaging.row import RowError, prompt_of
from vlmflow.packaging.signature import OUTPUTS
from vlmflow_engine.config import PytorchEngineConfig
from vlmflow_engine.errors import ConfigError
from vlmflow_engine.generation import GenerationConfig

if TYPE_CHECKING:
    from vlmflow_engine.request import Response

_log = logging.getLogger(__name__)
_NAME = "of MLflow"  # for sentences: a model that is loaded is not told its URI


class ServedModel(PythonModel):  # type: ignore[misc]  # MLflow has no types
    """Answers rows of prompt and image; a row that fails has its error, and harms no other."""

    def load_context(self, context: PythonModelContext) -> None:
        """Find the checkpoint and load it. Raises a VlmflowError with one sentence."""
        from vlmflow_engine.offline import Pipeline

        stored = StoredModel.from_config(context.model_config or {}, _NAME)
        # Held: a copy from S3 stays while this object lives.
        self._folder = _folder_of(stored, context.artifacts or {})
        self._generation = stored.generation
        self._pipeline = Pipeline(
            self._folder.path,
            PytorchEngineConfig(**stored.engine),
            model_name=stored.reference,
        )

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Answer each row. Raises MlflowException if `params` are not allowed.

        model_input  columns `prompt` and, where there are images, `image`, see `row.prompt_of`
        params       options of generation; those not given are as the model was logged

        The answer has a row for each, in order, of the columns OUTPUTS.
        """
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            config = GenerationConfig(**(self._generation | given))
        except (ConfigError, TypeError) as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
        answers: list[dict[str, Any]] = []
        asked, places = [], []
        for row in model_input.to_dict("records"):
            try:
                asked.append(prompt_of(row))
                places.append(len(answers))
                answers.append({})
            except RowError as error:
                answers.append(_failed(f"invalid_request: {error}"))
        for response in self._pipeline.iter_infer(asked, config):
            answers[places[response.index]] = _answer(response)
        # Not as pandas would have it, to which a missing text is a number that is none.
        table = pd.DataFrame(answers, columns=list(OUTPUTS), dtype=object)
        return table.astype({"prompt_tokens": "int64", "completion_tokens": "int64"})


def _folder_of(stored: StoredModel, artifacts: dict[str, str]) -> ModelFolder:
    if not stored.has_weights:
        return find_stored(stored, _NAME, ModelSource(model=stored.reference), say=_log.info)
    copy = artifacts[WEIGHTS]
    found = ModelFolder(Path(copy), model_digest(copy), copy)
    check_digest(_NAME, copy, found.digest, stored)
    return found


def _answer(response: "Response") -> dict[str, Any]:
    if response.error_code is not None:
        return _failed(f"{response.error_code}: {response.error_message}")
    return {
        "text": response.text,
        "finish_reason": response.finish_reason,
        "prompt_tokens": response.input_token_len,
        "completion_tokens": response.generate_token_len,
        "error": None,
    }


def _failed(error: str) -> dict[str, Any]:
    return {
        "text": "",
        "finish_reason": "error",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "error": error,
    }
