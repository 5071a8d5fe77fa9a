"""The runs of one process: opened when first needed, written to on the side, spooled when not."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmflow.tracking.metric_point import MetricPoint
from vlmflow.tracking.side_thread import SideThread
from vlmflow.tracking.spool import Spool

if TYPE_CHECKING:
    from vlmflow.tracking.breaker import Breaker
    from vlmflow.tracking.mlflow_run import MlflowRun


_MAX_TRIES = 4  # of a call that has to do with the run page; a fault of its own would repeat
_LOOK_SECONDS = 0.1  # between two looks whether a pause is over


class ServerPausedError(Exception):
    """The server has just failed and is left alone for a while."""


class TrackingSession:
    """Runs by name. What is asked of a run happens later, on the side thread, in order.

    Points that a server does not take are spooled. Of calls, `num_lost` counts those that were not
    carried out: who queues them can do so again.
    """

    def __init__(
        self,
        open_run: "Callable[[str], MlflowRun]",
        make_spool: Callable[[str], Spool],
        report_error: Callable[[Exception], None],
    ) -> None:
        """`open_run` and `make_spool` take a run's name; both are called on the side thread."""
        self._open_run = open_run
        self._make_spool = make_spool
        self._report_error = report_error
        self._runs: dict[str, MlflowRun] = {}
        self._spools: dict[str, Spool] = {}
        self._spools_lock = threading.Lock()
        self._breaker: Breaker | None = None
        self._thread = SideThread(self._send, report_error)
        self._is_patient = False
        self.num_lost = 0

    @property
    def num_dropped(self) -> int:
        """Points that were too many to wait in memory."""
        return self._thread.num_dropped

    def start(self) -> None:
        self._thread.start()

    def add_points(self, run: str, step: int, metrics: dict[str, float]) -> None:
        """Log one value of each metric, stamped now. Never waits."""
        self._thread.add_points(run, step, metrics)

    def call(self, run: str, task: "Callable[[MlflowRun], None]") -> None:
        """Queue a call on a run."""
        self._thread.call(lambda: self._carry_out(run, task))

    def open(self, run: str) -> "MlflowRun":
        """The run, opened if it is not. Only for calls, on the side thread."""
        if run not in self._runs:
            self._runs[run] = self._open_run(run)
        return self._runs[run]

    def opened(self, run: str) -> "MlflowRun | None":
        """The run, if it was opened by now."""
        return self._runs.get(run)

    def replay(self, run: str) -> None:
        """Send what was spooled for a run."""

        def send(opened: "MlflowRun") -> None:
            self._spool(run).replay(opened.send_points)

        self.call(run, send)

    def drain(self, timeout_seconds: float) -> bool:
        """Wait until what is queued now was tried; False if it takes longer than that."""
        return self._thread.drain(timeout_seconds)

    def close(self, deadline: float) -> bool:
        """Finish what is queued by then, of the monotonic clock; False if something is lacking.

        Raises what the store raises that holds the spool.
        """
        is_closed = self._thread.close(deadline - time.monotonic())
        if not is_closed:
            for run, points in self._thread.left():
                self._spool(run).keep(points)
        num_kept = sum(spool.write() for spool in list(self._spools.values()))
        return is_closed and not self.num_lost and not num_kept

    def begin_page(self) -> None:
        """What is queued from now on makes the run complete: it is tried again while there is time.

        Unless the server never answered: one that is down shall not hold up the job's end.
        """

        def begin() -> None:
            self.num_lost = 0
            self._is_patient = bool(self._runs)
            if self._breaker is not None:
                self._breaker.succeeded()

        self._thread.call(begin)

    def _carry_out(self, run: str, task: "Callable[[MlflowRun], None]") -> None:
        from vlmflow.tracking.breaker import is_server_trouble

        num_left = _MAX_TRIES
        while not self._thread.is_abandoned:
            try:
                self._guarded(run, task)
                return
            except ServerPausedError:
                if not self._is_patient:
                    self.num_lost += 1
                    return
                time.sleep(_LOOK_SECONDS)
            except Exception as error:
                num_left -= 1
                if not (num_left and self._is_patient and is_server_trouble(error)):
                    self.num_lost += 1
                    raise
                self._report_error(error)

    def _send(self, run: str, points: list[MetricPoint]) -> None:
        try:
            self._guarded(run, lambda opened: opened.send_points(points))
        except ServerPausedError:
            self._spool(run).keep(points)
        except Exception:
            self._spool(run).keep(points)
            raise

    def _guarded(self, run: str, task: "Callable[[MlflowRun], None]") -> None:
        """Carry a call out, unless the server is left alone now: then ServerPausedError."""
        # Loading MLflow takes seconds; on this thread they are nobody's.
        from vlmflow.tracking.breaker import Breaker, is_server_trouble

        breaker = self._breaker = self._breaker or Breaker()
        if breaker.is_open:
            raise ServerPausedError
        try:
            task(self.open(run))
        except Exception as error:
            if is_server_trouble(error):
                breaker.failed()
            raise
        breaker.succeeded()

    def _spool(self, run: str) -> Spool:
        with self._spools_lock:
            if run not in self._spools:
                self._spools[run] = self._make_spool(run)
            return self._spools[run]
