"""The command line of a pipeline's file: compile it, show its parameters, or run it."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmflow.command_parser import CommandParser
from vlmflow.job.errors import EXIT_BAD_INPUT, SpecError
from vlmflow.kubeflow.server import KfpServer
from vlmflow.kubeflow.step_task import Retry, StepSettings
from vlmflow_engine.errors import VlmflowError

_GROUP = "submit."  # before the names of our own options
_EPILOGUE = """environment:
  KF_PIPELINES_ENDPOINT    --host, if that is not given
  KF_PIPELINES_TOKEN       a bearer token
  KF_PIPELINES_COOKIE      a session's cookie, such as of Dex: authservice_session=...
  KF_PIPELINES_SA_TOKEN_PATH  a file with a service account's token, in a pod
  KF_PIPELINES_CA          a file with the certificates to trust
  VLMFLOW_IMAGE            --image, if that is not given

exit codes:
  0   done
  2   an option, or the server refuses the pipeline
  75  the server cannot be reached; try again
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """What a pipeline is made with, for kfp takes none of it as a parameter.

    :param steps: of every step.
    :param parallelism: shards at the same time; None: as many as there are.
    :param has_gpu: False for GPU tasks without a GPU.
    :param shm_size: of /dev/shm of a GPU task.
    :param cache_claim: a PersistentVolumeClaim of GPU tasks, for models and images.
    """

    steps: StepSettings = StepSettings()
    parallelism: int | None = None
    has_gpu: bool = True
    shm_size: str | None = "8Gi"
    cache_claim: str | None = None


PIPELINE_DEFAULTS = PipelineSettings()


def run_main(
    doc: str,
    make_pipeline: Callable[[PipelineSettings], Any],
    add_options: Callable[[argparse.ArgumentParser], None],
    make_parameters: Callable[[argparse.Namespace], dict[str, Any]],
    arguments: list[str] | None = None,
) -> int:
    """Carry a command line out and return its exit code.

    `add_options` declares what is said of the run, and `make_parameters` makes pipeline parameters
    of it; both know nothing of the options declared here.
    """
    parser = CommandParser(
        description=doc,
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    _add_submit(parser.add_argument_group("pipeline"))
    _add_settings(parser.add_argument_group("steps"))
    add_options(parser)
    options = parser.parse_args(arguments)
    ours = {
        name.removeprefix(_GROUP): options.__dict__.pop(name)
        for name in list(vars(options))
        if name.startswith(_GROUP)
    }
    server = KfpServer.from_environment(ours["host"], namespace=ours["namespace"])
    if not (ours["compile"] or ours["dry_run"] or server is not None):
        parser.error("say --compile FILE, --dry-run or --host URL")
    try:
        pipeline = make_pipeline(_settings(ours))
        if ours["compile"]:
            compile_pipeline(pipeline, Path(ours["compile"]))
            print(f"written to {ours['compile']}")
        if not ours["dry_run"] and server is None:
            return 0
        parameters = make_parameters(options) | _given(pipeline, ours["parameter"])
        check_parameters(pipeline, parameters)
        if ours["dry_run"]:
            print(json.dumps(parameters, indent=1, sort_keys=True))
        elif server is not None:
            with tempfile.TemporaryDirectory() as folder:
                package = Path(folder) / "pipeline.yaml"
                compile_pipeline(pipeline, package)
                url = server.run(
                    package,
                    parameters,
                    run_name=ours["run_name"] or pipeline.name,
                    experiment=ours["kfp_experiment"],
                    service_account=ours["service_account"],
                    pipeline_root=ours["pipeline_root"],
                )
            print(f"started {url}")
    except VlmflowError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return int(getattr(error, "exit_code", EXIT_BAD_INPUT))
    return 0


def compile_pipeline(pipeline: Any, path: Path) -> None:
    """Write a pipeline's two YAML documents: what it is, and what it asks of Kubernetes."""
    from kfp import compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(pipeline, str(path))


def check_parameters(pipeline: Any, parameters: dict[str, Any]) -> None:
    """Raises SpecError for a parameter that is missing, or none of the pipeline's."""
    inputs = pipeline.component_spec.inputs or {}
    missing = [n for n, i in inputs.items() if not i.optional and parameters.get(n) in (None, "")]
    if missing:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise SpecError(f"{options} must be given")
    for name in parameters:
        if name not in inputs:
            raise SpecError(f"{name!r} is no parameter of {pipeline.name}; {', '.join(inputs)} are")


def _given(pipeline: Any, words: list[str]) -> dict[str, Any]:
    """Parameters by name: JSON, but for texts. Raises SpecError."""
    inputs, values = pipeline.component_spec.inputs or {}, {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or name not in inputs:
            raise SpecError(f"--parameter {word!r} must be NAME=VALUE; names: {', '.join(inputs)}")
        kind = inputs[name].type
        if kind == "String":
            values[name] = text
            continue
        try:
            values[name] = json.loads(text)
        except ValueError as error:
            raise SpecError(f"--parameter {name}: {text!r} is no {kind} in JSON") from error
    return values


def _settings(options: dict[str, Any]) -> PipelineSettings:
    retries = options["retries"]
    return PipelineSettings(
        steps=StepSettings(
            image=options["image"],
            image_pull_policy=options["image_pull_policy"],
            image_pull_secrets=tuple(options["image_pull_secret"]),
            env=_variables(options["env"]),
            retry=Retry(retries) if retries else None,
            timeout_seconds=options["timeout"],
            is_cached=options["cached"],
        ),
        parallelism=options["parallelism"],
        has_gpu=not options["no_gpu"],
        shm_size=options["shm_size"],
        cache_claim=options["cache_claim"],
    )


def _variables(words: list[str]) -> dict[str, str]:
    """Raises SpecError for what is no NAME=VALUE."""
    pairs = [word.partition("=") for word in words]
    for name, sign, _ in pairs:
        if not sign or not name:
            raise SpecError(f"--env {name!r} must be NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _add_submit(group: Any) -> None:
    def add(name: str, **more: Any) -> None:
        dest = _GROUP + name.removeprefix("--").replace("-", "_")
        group.add_argument(name, dest=dest, **({"default": None} | more))

    add("--compile", metavar="FILE", help="write the pipeline's YAML")
    add("--dry-run", action="store_true", default=False, help="print the run's parameters and stop")
    add("--host", metavar="URL", help="of Kubeflow Pipelines: run it there")
    add("--namespace", metavar="NAME", help="of a user, where Kubeflow has several")
    add("--kfp-experiment", default="vlmflow", metavar="NAME", help="(default: vlmflow)")
    add("--run-name", metavar="NAME", help="(default: the pipeline's)")
    add("--service-account", metavar="NAME", help="that the steps run as")
    add("--pipeline-root", metavar="URI", help="where KFP puts artifacts")
    add(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another parameter of the pipeline, such as gpu_count=2; may be repeated",
    )


def _add_settings(group: Any) -> None:
    def add(name: str, **more: Any) -> None:
        dest = _GROUP + name.removeprefix("--").replace("-", "_")
        group.add_argument(name, dest=dest, **({"default": None} | more))

    add("--image", metavar="IMAGE", help="that every step runs in")
    add("--image-pull-policy", choices=("Always", "Never", "IfNotPresent"), help="of that image")
    add("--image-pull-secret", action="append", default=[], metavar="NAME", help="for its registry")
    add("--parallelism", type=_count, metavar="N", help="shards at a time (default: all)")
    add("--no-gpu", action="store_true", default=False, help="run the model on the CPU")
    add("--shm-size", default="8Gi", metavar="SIZE", help="of /dev/shm (default: 8Gi)")
    add("--cache-claim", metavar="NAME", help="PersistentVolumeClaim for models and images")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="of every step, no secret")
    add("--retries", type=int, default=Retry().count, metavar="N", help="of a step (default: 3)")
    add("--timeout", type=_count, metavar="S", help="of a step's pod (default: none)")
    add("--cached", action="store_true", default=False, help="let KFP cache all but the plan")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)
