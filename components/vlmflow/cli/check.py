"""`vlmflow check`: look at a job before it is run."""

import argparse
import json
import sys
from typing import IO, Any

from vlmflow.cli.job_options import add_job_options, parse_spec
from vlmflow.cli.signals import handling_signals


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = commands.add_parser(
        "check",
        help="look at a manifest and its images, and forecast time and cost",
        description="Read the whole manifest, look for some of its images, and with --sample ask "
        "some records to forecast time and cost. Writes nothing. Exit code 3 if more records "
        "would fail than --max-failure-rate allows.",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(handler=check)
    parser.add_argument(
        "--sample", type=_count, default=0, metavar="N", help="ask N records (default: 0)"
    )
    parser.add_argument("--json", action="store_true", default=False, help="print JSON")
    add_job_options(parser)


def check(options: argparse.Namespace) -> int:
    """Carry the subcommand out. Raises VlmflowError."""
    num_sampled, as_json = options.sample, options.json
    del options.sample, options.json
    return check_and_print(options, num_sampled=num_sampled, as_json=as_json)


def check_and_print(options: argparse.Namespace, *, num_sampled: int, as_json: bool) -> int:
    """Check the job of these options, print what was found, and return the exit code."""
    from vlmflow.job.errors import EXIT_COMPLETE, EXIT_FAILURES
    from vlmflow.job.loop import StopSignal
    from vlmflow.job.preflight import check_job, failure_share
    from vlmflow.job.progress import make_display

    spec, stop, display = parse_spec(options), StopSignal(), make_display()
    try:
        with handling_signals(stop):
            result = check_job(spec, num_sampled=num_sampled, display=display, stop=stop)
    finally:
        display.close()
    share, allowed = failure_share(result), spec.limits.max_failure_rate
    result["expected_failure_rate"] = round(share, 4)
    if as_json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        _print(result, sys.stdout)
    if share > allowed:
        print(
            f"vlmflow: {share:.1%} of the records would fail, more than --max-failure-rate "
            f"{allowed:.1%}",
            file=sys.stderr,
        )
        return EXIT_FAILURES
    return EXIT_COMPLETE


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of records")
    return int(text)


def _print(result: dict[str, Any], out: IO[str]) -> None:
    from vlmflow.job.progress import format_seconds

    manifest, images, forecast = result["manifest"], result["images"], result["forecast"]
    rows = [
        ("manifest", manifest["uri"]),
        ("dialect", manifest["dialect"]),
        ("records", f"{manifest['records']:,}"),
        ("to ask", f"{manifest['to_ask']:,}"),
        ("images", f"{manifest['images']:,}"),
        ("bad lines", f"{result['bad_lines']['count']:,}"),
        ("duplicates", f"{result['duplicates']['count']:,}"),
        ("images looked for", f"of {images['records']} records, {images['records_failing']} fail"),
    ]
    if forecast is not None:
        time = format_seconds(forecast["device_seconds"])
        rate = forecast["records_per_second"] or 0.0
        rows.append(("forecast", f"{time} of one worker, {rate:.1f} records/s"))
        if forecast["cost"] is not None:
            rows.append(("cost", f"{forecast['cost']:,.2f}"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}", file=out)
    for group in ("bad_lines", "duplicates", "images"):
        for example in result[group]["examples"]:
            print(f"  {example['message']}", file=out)
