"""The engine as a job sees it: started when it is needed, waited for, ended."""

import queue
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from vlmflow.job.engine_process import EngineEvent, EngineProcess
from vlmflow.job.errors import EngineDiedError, InterruptedJobError, SpecError
from vlmflow.job.loop import StopSignal
from vlmflow.job.record_fetches import Fetched
from vlmflow.job.spec import JobSpec
from vlmflow_engine.config import FLOAT8_POLICY

_MAX_STARTS = 3  # of an engine that dies before it is ready


class JobEngine:
    """The engine process of a job, which outlives a shard; and the queue that it writes to."""

    def __init__(self, spec: JobSpec, stop: StopSignal, say: Callable[[str], None]) -> None:
        self._spec = spec
        self._stop = stop
        self._say = say
        self.events: queue.SimpleQueue[EngineEvent | Fetched] = queue.SimpleQueue()
        self._num_deaths = 0  # while it loaded
        # Since when it runs, but for what an attempt has counted as its own time; None: it does not
        self.held_since: float | None = None
        self.process = EngineProcess(spec.model, self.events.put)

    def start(self, dtype: str) -> None:
        """Start it unless it runs; `wait_until_ready` is for later."""
        if self.process.pid is None:
            self._num_deaths = 0
            self.held_since = time.monotonic()
            self.process.config = asdict(self._spec.engine) | {"dtype": dtype}
            self.process.start()

    def stop(self) -> None:
        """End it; it may be started again."""
        self.process.stop()
        self.held_since = None

    def wait_until_ready(self) -> dict[str, Any]:
        """Wait, and say what it is. Raises SpecError, EngineDiedError or InterruptedJobError."""
        engine = self.process
        while not engine.is_ready:
            if self._stop.count:
                raise InterruptedJobError("told to stop before the first record")
            silence = engine.end_if_silent(self._spec.limits)
            if silence:
                self._say(f"the engine has been loading for {silence:.0f} s; ending it")
            try:
                event = self.events.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(event, EngineEvent) and event.incarnation == engine.incarnation:
                self._take(engine, event.frame)
        return engine.info

    def _take(self, engine: EngineProcess, frame: dict[str, Any] | None) -> None:
        """Take an event of an engine that is not ready yet."""
        if frame is None:
            how = engine.exit_description()
            self._num_deaths += 1
            if self._num_deaths >= _MAX_STARTS:
                raise EngineDiedError(f"the engine died while it loaded the model ({how})")
            self._say(f"the engine died while it loaded the model ({how}); once more")
            engine.start()
            return
        engine.heard(frame)
        if frame["type"] == "failed":
            raise SpecError(frame["message"])
        if frame["type"] == "ready":
            info = frame["info"]
            policy = info["quant_policy"]
            stored = " in float8" if policy == FLOAT8_POLICY else f" of {policy} bits"
            quant = f" with weights in {info['quant']}" if info["quant"] else ""
            self._say(
                f"engine: {info['device']}, {info['dtype']}{quant}, {info['attention_backend']} "
                f"attention, batch {info['max_batch_size']}, "
                f"{info['kv_cache_bytes'] / 2**20:,.0f} MiB KV cache" + (stored if policy else "")
            )
