"""One value of one metric at one moment."""

from dataclasses import dataclass

MAX_BATCH = 1000  # points in one call, MLflow's own limit


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """MLflow keeps one of two that are equal in all four, so sending a point twice is harmless."""

    key: str
    value: float
    step: int
    timestamp_ms: int  # since 1970
