"""A small client of Airflow's REST API, for `make airflow` and the tests."""

import json
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlencode

FINISHED = frozenset({"success", "failed"})  # states that a run stays in
_LOGIN_SECONDS = 3600.0  # a token lives for a day
_DATABASE_SECONDS = 1.0  # until another writer is done


class AirflowApi:
    """Speaks to one api-server. Raises RuntimeError with the server's words where it refuses."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._token, self._token_time = "", 0.0

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """One request below /api/v2; returns what its JSON says."""
        headers = {"Authorization": f"Bearer {self.token()}"}
        return self._send(method, f"/api/v2{path}{_query(query)}", body, headers)

    def token(self) -> str:
        """What says who we are; as the cookie `_token` it opens the pages too."""
        if time.monotonic() - self._token_time > _LOGIN_SECONDS or not self._token:
            answer = self._send("POST", "/auth/token", self._login, {})
            self._token, self._token_time = answer["access_token"], time.monotonic()
        return self._token

    def health(self) -> dict[str, str]:
        """The status of each component, by its name; needs no password. Raises OSError."""
        with urllib.request.urlopen(f"{self.url}/api/v2/monitor/health", timeout=10) as answer:
            return {name: part["status"] for name, part in json.load(answer).items()}

    def wait_for_dag(self, dag_id: str, seconds: float) -> None:
        """Wait until the dag-processor has read a DAG."""
        deadline = time.monotonic() + seconds
        while True:
            known = self.call("GET", "/dags", limit=100)["dags"]
            if any(dag["dag_id"] == dag_id for dag in known):
                return
            errors = self.call("GET", "/importErrors")["import_errors"]
            if errors or time.monotonic() > deadline:
                raise RuntimeError(f"no DAG {dag_id!r}; import errors: {errors}")
            time.sleep(0.5)

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run a DAG."""
        self.call("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def trigger(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> None:
        """Start a run with its params."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        self.call("POST", f"/dags/{dag_id}/dagRuns", body)

    def run_state(self, dag_id: str, run_id: str) -> str:
        """`queued`, `running`, `success` or `failed`."""
        return str(self.call("GET", _run(dag_id, run_id))["state"])

    def wait_for_run(self, dag_id: str, run_id: str, seconds: float) -> str:
        """Wait until a run is over; return its state. Raises RuntimeError when it takes longer."""
        deadline = time.monotonic() + seconds
        while (state := self.run_state(dag_id, run_id)) not in FINISHED:
            if time.monotonic() > deadline:
                tasks = [
                    (task["task_id"], task["map_index"], task["state"])
                    for task in self.tasks(dag_id, run_id)
                ]
                raise RuntimeError(f"{dag_id} {run_id} is {state} after {seconds} s: {tasks}")
            time.sleep(0.5)
        return state

    def tasks(self, dag_id: str, run_id: str, task_id: str | None = None) -> list[dict[str, Any]]:
        """The task instances of a run, or of one of its tasks, by map index."""
        found = self.call("GET", f"{_run(dag_id, run_id)}/taskInstances", limit=100)
        chosen = [t for t in found["task_instances"] if task_id in (None, t["task_id"])]
        return sorted(chosen, key=lambda task: (task["task_id"], task["map_index"]))

    def set_state(
        self, dag_id: str, run_id: str, task_id: str, state: str, index: int = -1
    ) -> None:
        """Mark a task instance, as the buttons of the page do."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/{index}"
        self.call("PATCH", path, {"new_state": state})

    def clear(self, dag_id: str, run_id: str, task_id: str, index: int | None = None) -> None:
        """Let a task run again, whatever it did or does, and what comes after it."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task_id if index is None else [task_id, index]],
            "include_downstream": True,
            "only_failed": False,
            "reset_dag_runs": True,
        }
        self.call("POST", f"/dags/{dag_id}/clearTaskInstances", body)

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, index: int = -1, key: str = "return_value"
    ) -> Any:
        """What a task handed on."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/xcomEntries/{quote(key)}"
        return self.call("GET", path, map_index=index)["value"]

    def links(self, dag_id: str, run_id: str, task_id: str, index: int = -1) -> dict[str, str]:
        """The extra links of a task instance: URLs by name."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/links"
        return dict(self.call("GET", path, map_index=index)["extra_links"])

    def log(self, dag_id: str, run_id: str, task_id: str, index: int = -1, attempt: int = 1) -> str:
        """The log of one attempt of a task instance, a line an event."""
        path = f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id)}/logs/{attempt}"
        content = self.call("GET", path, map_index=index, full_content="true")["content"]
        return "\n".join(
            line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)
            for line in content
        )

    def asset_events(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The asset events that the tasks of a run made."""
        found = self.call("GET", "/assets/events", source_dag_id=dag_id, source_run_id=run_id)
        return list(found["asset_events"])

    def _send(
        self, method: str, path: str, body: Any, headers: dict[str, str], attempts: int = 10
    ) -> Any:
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Accept": "application/json"} | headers,
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                words = error.read().decode(errors="replace")[:1000]
            # SQLite has one writer, and the server does not wait for it. Where it reads it may say
            # nothing of why; what is asked again changes nothing then.
            is_locked = "Database error" in words or method == "GET"
            if error.code == 500 and is_locked and attempts > 1:
                time.sleep(_DATABASE_SECONDS)
                return self._send(method, path, body, headers, attempts - 1)
            raise RuntimeError(f"{method} {path}: {error.code} {words}") from None
        return json.loads(text) if text else None


def _run(dag_id: str, run_id: str) -> str:
    return f"/dags/{dag_id}/dagRuns/{quote(run_id)}"


def _query(values: dict[str, Any]) -> str:
    return f"?{urlencode(values)}" if values else ""
