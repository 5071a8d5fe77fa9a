"""Lines of a pod's log are told once each, as they come."""

import logging
import time

from kubernetes import client, config

from tests.airflow.kubernetes.kit import Kit
from vlmflow.airflow.operators.pod_logs import PodLogs

WRITES = "import sys, time\nfor n in range(6):\n print('line', n, flush=True)\n time.sleep(0.15)"


class Told(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_each_line_is_told_once(kit: Kit):
    log, told = logging.Logger("pod"), Told()
    log.addHandler(told)
    container = {"name": "base", "image": "python", "command": ["python", "-c", WRITES]}
    kit.cluster.create_pod(
        "default",
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "p"},
            "spec": {"restartPolicy": "Never", "containers": [container]},
        },
    )
    with config.new_client_from_config(str(kit.folder / "kubeconfig")) as api:
        core = client.CoreV1Api(api)
        logs = PodLogs(core, "base", log)
        counts = set()
        while not kit.cluster.pod_names("Succeeded"):
            logs.tell(core.list_namespaced_pod("default").items)
            counts.add(len(told.lines))
            time.sleep(0.1)
        logs.tell(core.list_namespaced_pod("default").items)
    assert told.lines == [f"[p] line {n}" for n in range(6)]
    assert len(counts) > 2  # while it ran, and not all at the end


def test_a_log_that_cannot_be_had_is_a_warning(kit: Kit):
    log, told = logging.Logger("pod"), Told()
    log.addHandler(told)
    gone = client.V1Pod(
        metadata=client.V1ObjectMeta(name="gone", namespace="default"),
        status=client.V1PodStatus(phase="Running"),
    )
    with config.new_client_from_config(str(kit.folder / "kubeconfig")) as api:
        PodLogs(client.CoreV1Api(api), "base", log).tell([gone])
    assert len(told.lines) == 1 and "the log of pod gone cannot be read" in told.lines[0]
