"""The options that describe a job, the same for every subcommand, and the JobSpec they make."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmflow.cli.evaluation_options import add_evaluation
from vlmflow.cli.tracking_options import add_tracking, add_tracking_limits
from vlmflow_engine.config import DEVICE_TYPES, DTYPES, QUANTS, PytorchEngineConfig
from vlmflow_engine.generation import GenerationConfig

if TYPE_CHECKING:
    from vlmflow.job.spec import JobSpec

_REQUIRED = ("manifest", "model", "output")

_generation = GenerationConfig()
_engine = PytorchEngineConfig()


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Declare them. What is not given is --spec's, or else the JobSpec's default."""
    job = parser.add_argument_group("job")
    job.add_argument(
        "--spec",
        metavar="FILE",
        help="a JobSpec in JSON, - for standard input, or the JSON itself; options go before it",
    )
    job.add_argument("--manifest", metavar="URI", help="s3:// or a path")
    job.add_argument(
        "--dialect",
        metavar="NAME",
        help="of the manifest (default: found out)",
    )
    job.add_argument(
        "--prompt", metavar="TEXT", help="of every image, for manifests that are lists of images"
    )
    job.add_argument(
        "--model-name",
        dest="model_names",
        action="append",
        metavar="NAME",
        help="a manifest's name for the model, may be given again (default: any one)",
    )
    job.add_argument(
        "--duplicates",
        choices=("first", "fail", "suffix"),
        help="of an id: keep the first, refuse the manifest, or give the others new ids "
        "(default: first)",
    )
    job.add_argument(
        "--model",
        metavar="MODEL",
        help="folder, owner/name of the model hub, s3://bucket/prefix, or models:/name/version of "
        "an MLflow registry",
    )
    model = parser.add_argument_group("model")
    add_model_source(model)
    model.add_argument(
        "--no-stored-options",
        dest="use_stored_options",
        action="store_false",
        help="of a model of an MLflow registry: do not take the options that it was logged with",
    )
    job.add_argument("--output", metavar="URI", help="s3:// or a folder")
    job.add_argument(
        "--output-dialect",
        dest="output_dialects",
        action="append",
        metavar="NAME",
        help="write results as openai, anthropic, bedrock, gemini or parquet too; may be repeated",
    )
    job.add_argument("--name", help="folder below the output (default: the manifest's name)")
    job.add_argument("--endpoint-url", metavar="URL", help="of an S3 store other than AWS")
    job.add_argument("--limit", type=int, metavar="N", help="only the first N records")
    job.add_argument(
        "--num-shards", type=int, metavar="N", help="cut the manifest for N workers (default: 1)"
    )
    job.add_argument("--seed", type=int, metavar="N", help="of all that is sampled (default: 0)")
    job.add_argument(
        "--no-dedup",
        dest="deduplicate",
        action="store_false",
        help="ask every record, even those that ask what another asked",
    )
    job.add_argument(
        "--price-per-hour",
        type=float,
        metavar="PRICE",
        help="of one worker's device, in any currency: the report says what the job cost",
    )
    _add_media(parser.add_argument_group("media"))
    add_generation(parser.add_argument_group("generation"))
    add_engine(parser.add_argument_group("engine"))
    _add_limits(parser.add_argument_group("limits"))
    tracking = parser.add_argument_group("tracking")
    add_tracking(tracking)
    add_tracking_limits(tracking)
    add_evaluation(parser.add_argument_group("evaluation"))


def parse_spec(options: argparse.Namespace) -> "JobSpec":
    """Make the JobSpec of the options given. Raises SpecError."""
    # Not at the top: `vlmflow --help` shall not wait for pydantic.
    from vlmflow.job.errors import SpecError
    from vlmflow.job.spec import JobSpec

    given = job_values(options)
    spec_file = given.pop("spec", None)
    values = _read_spec(spec_file) if spec_file is not None else {}
    for name, value in given.items():
        if isinstance(value, dict):
            values[name] = {**values.get(name, {}), **value}
        else:
            values[name] = value
    missing = [f"--{name}" for name in _REQUIRED if name not in values]
    if missing:
        raise SpecError(f"{' and '.join(missing)} must be given, here or in a --spec file")
    return JobSpec.parse(values)


def _read_spec(file: str) -> dict[str, Any]:
    from vlmflow.job.errors import SpecError

    is_json = file.lstrip().startswith("{")
    shown = f"{file[:80]!r}"
    try:
        text = file if is_json else sys.stdin.read() if file == "-" else Path(file).read_text()
        values = json.loads(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise SpecError(f"cannot read --spec {shown}: {reason}") from error
    if not isinstance(values, dict):
        raise SpecError(f"--spec {shown} holds no JobSpec: it must be a JSON object")
    return values


def job_values(options: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, {"engine.dtype": x} as {"engine": {"dtype": x}}."""
    nested: dict[str, Any] = {}
    for name, value in vars(options).items():
        if name in ("handler", "assignment"):
            continue
        group, dot, field = name.partition(".")
        if dot:
            nested.setdefault(group, {})[field] = value
        else:
            nested[name] = value
    return nested


def add_model_source(group: Any) -> None:
    """Declare which version of a model, and where it is put."""
    group.add_argument(
        "--revision",
        dest="engine.revision",
        metavar="REV",
        help="branch, tag or commit of a model of the hub (default: main)",
    )
    group.add_argument(
        "--require-pinned-revision",
        dest="engine.require_pinned_revision",
        action="store_true",
        help="take a model of the hub only by the full hash of a commit",
    )
    group.add_argument(
        "--download-dir",
        dest="engine.download_dir",
        metavar="DIR",
        help="where models of the hub are put (default: the hub's own cache)",
    )
    group.add_argument(
        "--model-cache",
        metavar="DIR",
        help="where models of S3 are put (default: $VLMFLOW_MODEL_CACHE, else "
        "~/.cache/vlmflow/models)",
    )


def _add_media(group: Any) -> None:
    group.add_argument(
        "--allow-s3",
        dest="media.allowed_s3",
        action="append",
        metavar="URI",
        help="s3://bucket or s3://bucket/prefix that images may come from, beside the manifest's "
        "own bucket; may be given several times",
    )
    group.add_argument(
        "--allow-http",
        dest="media.allow_http",
        action="store_true",
        help="fetch images over http(s), from public addresses only",
    )
    group.add_argument(
        "--allow-media-domain",
        dest="media.allowed_media_domains",
        action="append",
        metavar="HOST",
        help="the only hosts that http(s) may fetch from; may be given several times",
    )
    group.add_argument(
        "--media-cache",
        dest="media.cache",
        metavar="DIR",
        help="where images from S3 and the web are kept (default: ~/.cache/vlmflow/media)",
    )
    group.add_argument(
        "--media-cache-bytes",
        dest="media.cache_bytes",
        type=int,
        metavar="N",
        help="of that folder at most, 0 for none (default: 10 GiB)",
    )


def add_generation(group: Any) -> None:
    """Declare how answers are generated."""

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


def add_engine(group: Any) -> None:
    """Declare how the engine runs."""

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
    group.add_argument(
        "--quant",
        dest="engine.quant",
        choices=[quant for quant in QUANTS if quant],
        help="weights in 8 bits, on a CPU (default: in the dtype)",
    )
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
        "--min-records",
        dest="limits.min_records",
        type=int,
        metavar="N",
        help="end a job early by that share when so many are finished (default: 100)",
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
