"""What an attempt has done so far, and how fast: for the bar, the progress file and MLflow."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vlmflow.job.activity import ActivityClock
from vlmflow.job.record import Outcome
from vlmflow.job.record_times import RecordTimes


@dataclass(slots=True)
class Throughput:
    """Counts of this attempt. One thread writes."""

    num_before: int  # done by earlier attempts, or set aside
    num_failed_before: int
    started: float = field(default_factory=time.monotonic)
    num_succeeded: int = 0
    num_images: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # by class
    first_result_seconds: float | None = None
    last_result_seconds: float = 0.0
    activity: ActivityClock = field(default_factory=ActivityClock)
    times: RecordTimes = field(default_factory=lambda: RecordTimes(0, 0))  # none, unless asked for
    engine: dict[str, float] = field(default_factory=dict)  # the engine's own counts, summed over
    # its incarnations but for the gauges
    _engine_base: dict[str, float] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)

    @property
    def num_failed(self) -> int:
        return self.failures.total()

    @property
    def num_finished(self) -> int:
        """Finished by this attempt."""
        return self.num_succeeded + self.num_failed

    @property
    def num_done(self) -> int:
        return self.num_before + self.num_finished

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def records_per_second(self) -> float:
        """Over the time from the first result to the last, where there is more than one."""
        if self.first_result_seconds is None or self.num_finished < 2:
            return 0.0
        span = self.last_result_seconds - self.first_result_seconds
        return (self.num_finished - 1) / span if span > 0 else 0.0

    def add(self, outcome: Outcome) -> None:
        """Count a finished record."""
        now = self.seconds
        if outcome.failure is not None:
            self.failures[outcome.failure.error_class] += 1
        else:
            usage = outcome.line["usage"]
            self.num_succeeded += 1
            self.num_images += outcome.num_images
            self.prompt_tokens += usage["prompt_tokens"]
            self.output_tokens += usage["completion_tokens"]
        if self.first_result_seconds is None:
            self.first_result_seconds = now
        self.last_result_seconds = now

    def add_engine_stats(self, stats: dict[str, float]) -> None:
        """Take the totals of the current engine process."""
        self.engine = {
            name: value + self._engine_base.get(name, 0) for name, value in stats.items()
        }

    def engine_runs_already(self, stats: dict[str, float]) -> None:
        """Leave out what an engine did for somebody before."""
        self._engine_base = {n: -value for n, value in stats.items() if n not in _GAUGES}

    def engine_restarted(self) -> None:
        """Keep the dead engine's totals; the next one counts from zero."""
        self._engine_base = {
            name: value for name, value in self.engine.items() if name not in _GAUGES
        }

    def metrics(self) -> dict[str, float]:
        """Rates since the last call and the engine's gauges, by MLflow's metric names."""
        totals = {
            "seconds": self.seconds,
            "records": self.num_finished,
            "images": self.num_images,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "steps": self.engine.get("num_steps", 0),
            "sum_running": self.engine.get("sum_running", 0),
        }
        before = self._last or dict.fromkeys(totals, 0.0)
        delta = {name: totals[name] - before[name] for name in totals}
        self._last = totals
        seconds = max(delta["seconds"], 1e-9)
        metrics = {
            f"{name}_per_second": delta[name] / seconds
            for name in ("records", "images", "prompt_tokens", "output_tokens")
        }
        batch = self.engine.get("max_batch_size", 0) * delta["steps"]
        if batch:  # between two steps there is no occupancy, not one of zero
            metrics["batch_occupancy"] = delta["sum_running"] / batch
        metrics["kv_usage"] = self.engine.get("kv_usage", 0.0)
        return metrics | self.hit_rates() | {"failed_total": float(self.num_failed)}

    def hit_rates(self) -> dict[str, float]:
        """Shares of prompt tokens and image encodings that the caches saved."""
        return {
            "prefix_hit_rate": _share(self.engine, "prefix_hit_tokens", "prefix_query_tokens"),
            "encoder_hit_rate": _share(self.engine, "encoder_hits", "encoder_queries"),
        }

    def as_dict(self) -> dict[str, Any]:
        """For the progress file and the report's list of attempts."""
        return {
            "seconds": round(self.seconds, 3),
            "first_result_seconds": self.first_result_seconds,
            "last_result_seconds": self.last_result_seconds,
            "done": self.num_done,
            "succeeded": self.num_succeeded,
            "failed": self.num_failed,
            "failed_in_all": self.num_failed_before + self.num_failed,
            "failures": dict(self.failures),
            "images": self.num_images,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "records_per_second": round(self.records_per_second, 3),
            "activity_seconds": self.activity.as_dict(),
            "engine": self.engine,
        }


_GAUGES = ("kv_usage", "num_running", "num_waiting", "max_batch_size")


def _share(stats: dict[str, float], part: str, whole: str) -> float:
    return stats[part] / stats[whole] if stats.get(whole) else 0.0
