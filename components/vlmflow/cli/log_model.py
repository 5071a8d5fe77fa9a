"""`vlmflow log-model`: keep a checkpoint and its options as a model of MLflow."""

import argparse
from typing import TYPE_CHECKING

from vlmflow.cli.job_options import add_engine, add_generation, add_model_source, job_values
from vlmflow.cli.signals import handling_signals

if TYPE_CHECKING:
    from vlmflow.packaging.log_model import LoggedPackage

_EXAMPLE = """example:
  vlmflow log-model --model s3://models/shapes --max-new-tokens 64 --name shapes --alias champion
  vlmflow run --model models:/shapes@champion --manifest m.jsonl --output results
  mlflow models serve -m models:/shapes@champion --env-manager local

The checkpoint stays where it is; its digest is looked at whenever the model is used.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "log-model",
        help="keep a checkpoint and its options as a model of MLflow",
        description="Log a model to MLflow: where its checkpoint is, its digest, and the options "
        "that it is run with. --model of a job takes it as models:/name/version, MLflow serves it.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=log)
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="folder, owner/name of the model hub, or s3://bucket/prefix",
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="of an S3 store other than AWS")
    parser.add_argument(
        "--copy-weights",
        action="store_true",
        help="put the checkpoint's files among the model's, for machines that see MLflow alone",
    )
    registry = parser.add_argument_group("registry")
    registry.add_argument("--name", help="register the model: the next version of this name")
    registry.add_argument("--alias", help="let this alias of the name mean this version")
    add_model_source(parser.add_argument_group("model"))
    add_generation(parser.add_argument_group("generation"))
    add_engine(parser.add_argument_group("engine"))
    tracking = parser.add_argument_group("tracking")
    tracking.add_argument(
        "--mlflow-uri",
        dest="tracking.uri",
        metavar="URI",
        help="tracking server or database (default: MLFLOW_TRACKING_URI, else MLflow's own)",
    )
    tracking.add_argument(
        "--experiment", dest="tracking.experiment", metavar="NAME", help="(default: vlmflow)"
    )


def log(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.progress import make_display
    from vlmflow.packaging.log_model import log_model
    from vlmflow.packaging.request import PackageRequest

    request = PackageRequest.parse(job_values(options))
    display, stop = make_display(), StopSignal()
    try:
        with handling_signals(stop):
            logged = log_model(request, say=display.say, is_stopped=lambda: stop.count > 0)
    finally:
        display.close()
    _print(logged, request.alias)
    return 0


def _print(logged: "LoggedPackage", alias: str | None) -> None:
    from vlmflow.job.store.locate import without_query

    stored = logged.stored
    commit = f" at commit {stored.revision}" if stored.revision else ""
    what = "a copy of" if stored.has_weights else "a reference to"
    options = [f"engine.{name}={value!r}" for name, value in stored.engine.items()]
    options += [f"generation.{name}={value!r}" for name, value in stored.generation.items()]
    rows = {
        "model": logged.uri,
        "version": logged.version or "not registered; --name registers it",
        "alias": alias,
        "model id": logged.model_id,
        "stored": f"{what} {stored.reference}{commit}",
        "digest": stored.digest,
        "options": ", ".join(options) or "all at their defaults",
        "mlflow": without_query(logged.tracking_uri),
    }
    for name, value in rows.items():
        if value is not None:
            print(f"{name:<8}  {value}")
