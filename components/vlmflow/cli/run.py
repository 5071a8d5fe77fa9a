"""`vlmflow run`: run a manifest through a model."""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlmflow_engine.config import DEVICE_TYPES, DTYPES, PytorchEngineConfig
from vlmflow_engine.generation import GenerationConfig

if TYPE_CHECKING:
    from vlmflow.job.loop import StopSignal

_EXAMPLE = """example:
  vlmflow run --manifest s3://data/shapes/manifest.jsonl --model ./checkpoint \\
      --output s3://data/results --max-new-tokens 64

Run the same command again to go on after an interruption. Results are written below
OUTPUT/NAME/: results/, failures/, report.json, and _SUCCESS.json last.
"""

_generation = GenerationConfig()
_engine = PytorchEngineConfig()


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand. Options that are not given take the JobSpec's defaults."""
    parser = commands.add_parser(
        "run",
        help="run a manifest through a model",
        description="Run every record of a manifest through a vision-language model and commit "
        "one result for each.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=run)
    parser.add_argument("--manifest", required=True, metavar="URI", help="s3:// or a path")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="checkpoint folder")
    parser.add_argument("--output", required=True, metavar="URI", help="s3:// or a folder")
    parser.add_argument("--name", help="folder below the output (default: the manifest's name)")
    parser.add_argument("--endpoint-url", metavar="URL", help="of an S3 store other than AWS")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N records")
    parser.add_argument("--seed", type=int, metavar="N", help="of all that is sampled (default: 0)")
    _add_generation(parser.add_argument_group("generation"))
    _add_engine(parser.add_argument_group("engine"))
    _add_limits(parser.add_argument_group("limits"))
    _add_tracking(parser.add_argument_group("tracking"))


def _add_generation(group: Any) -> None:
    def add(name: str, kind: type, text: str) -> None:
        default = getattr(_generation, name)
        option = f"--{name.replace('_', '-')}"
        group.add_argument(
            option,
            dest=f"generation.{name}",
            type=kind,
            metavar="N",
            help=f"{text} (default: {default})",
        )

    add("max_new_tokens", int, "tokens of an answer")
    group.add_argument(
        "--do-sample",
        dest="generation.do_sample",
        action="store_true",
        help="sample instead of taking the likeliest token",
    )
    add("temperature", float, "of sampling")
    add("top_k", int, "sample among so many, 0 for all")
    add("top_p", float, "sample among the likeliest with this mass")
    add("min_p", float, "sample among those at least so likely as the likeliest times this")
    group.add_argument(
        "--ignore-eos",
        dest="generation.ignore_eos",
        action="store_true",
        help="always generate --max-new-tokens",
    )


def _add_engine(group: Any) -> None:
    def add(name: str, kind: type, text: str, **more: Any) -> None:
        default = getattr(_engine, name)
        shown = "found out" if default in (None, 0) else default
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"engine.{name}",
            type=kind,
            help=f"{text} (default: {shown})",
            **({"metavar": "N"} | more),
        )

    add("device_type", str, "where to run", choices=DEVICE_TYPES, metavar="TYPE")
    add("dtype", str, "of weights and cache", choices=DTYPES, metavar="DTYPE")
    add("session_len", int, "tokens of prompt and answer")
    add("max_batch_size", int, "sequences in a step")
    add("max_prefill_token_num", int, "tokens in a step")
    add("block_size", int, "tokens per KV block")
    add("num_gpu_blocks", int, "KV blocks, on any device")
    add("cache_max_entry_count", float, "share of free memory for the KV cache")
    add("encoder_cache_rows", int, "image embeddings kept")
    add("max_image_pixels", int, "of an image before it is decoded")
    add("num_preprocess_workers", int, "processes that decode images, 0: a thread")
    group.add_argument(
        "--no-prefix-caching",
        dest="engine.enable_prefix_caching",
        action="store_false",
        help="compute every prompt from its beginning",
    )


def _add_limits(group: Any) -> None:
    group.add_argument(
        "--max-failure-rate",
        dest="limits.max_failure_rate",
        type=float,
        metavar="SHARE",
        help="failed records above this share fail the job (default: 0.1)",
    )
    group.add_argument(
        "--max-image-bytes",
        dest="limits.max_image_bytes",
        type=int,
        metavar="N",
        help="of one image file (default: 64 MiB)",
    )
    group.add_argument(
        "--num-fetchers",
        dest="limits.num_fetchers",
        type=int,
        metavar="N",
        help="images fetched at the same time (default: 16)",
    )
    group.add_argument(
        "--commit-seconds",
        dest="limits.commit_seconds",
        type=float,
        metavar="S",
        help="commit at least so often (default: 10)",
    )
    group.add_argument(
        "--grace",
        dest="limits.grace_seconds",
        type=float,
        metavar="S",
        help="after SIGTERM or Ctrl-C, for what is in flight (default: 25)",
    )


def _add_tracking(group: Any) -> None:
    group.add_argument(
        "--mlflow-uri",
        dest="tracking.uri",
        metavar="URI",
        help="tracking server or database (default: MLFLOW_TRACKING_URI, else MLflow's own)",
    )
    group.add_argument(
        "--experiment", dest="tracking.experiment", metavar="NAME", help="(default: vlmflow)"
    )
    group.add_argument(
        "--no-mlflow", dest="tracking.enabled", action="store_false", help="log to no MLflow"
    )


def run(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    # Not at the top: `vlmflow --help` shall not wait for pydantic.
    from vlmflow.cli.summary import print_summary
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.progress import make_display
    from vlmflow.job.run import JobRun
    from vlmflow.job.spec import JobSpec

    spec = JobSpec.parse(_nested(vars(options)))
    stop = StopSignal()
    display = make_display()
    try:
        with _handling_signals(stop):
            report = JobRun(spec, display=display, stop=stop).run()
    finally:
        display.close()
    print_summary(report, sys.stdout)
    return 0


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """{"engine.dtype": x} -> {"engine": {"dtype": x}}."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if name == "handler":
            continue
        group, dot, field = name.partition(".")
        if dot:
            nested.setdefault(group, {})[field] = value
        else:
            nested[name] = value
    return nested


@contextmanager
def _handling_signals(stop: "StopSignal") -> Iterator[None]:
    """Let SIGTERM and Ctrl-C drain the job instead of tearing it down."""
    before = {
        number: signal.signal(number, lambda *_: stop())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
