"""Copied into every model that `vlmflow log-model` logs; MLflow runs it to load the model."""

from mlflow.models import set_model  # noqa: TID253

from vlmflow.packaging.served_model import ServedModel

set_model(ServedModel())
