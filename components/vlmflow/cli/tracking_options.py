"""The options of a job that say where and how it is tracked."""

from typing import Any


def add_tracking(group: Any) -> None:
    """Declare where MLflow is."""
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


def add_tracking_limits(group: Any) -> None:
    group.add_argument(
        "--mlflow-results-max",
        dest="tracking.results_max_bytes",
        type=int,
        metavar="BYTES",
        help="log all results as results.parquet up to this size, else where they are "
        "(default: 100000000)",
    )
    group.add_argument(
        "--mlflow-traces",
        dest="tracking.num_traces",
        type=int,
        metavar="N",
        help="records of the job to show as traces (default: 50)",
    )
    group.add_argument(
        "--mlflow-end-seconds",
        dest="tracking.end_seconds",
        type=float,
        metavar="S",
        help="wait so long for the run page when the job is done (default: 60)",
    )
