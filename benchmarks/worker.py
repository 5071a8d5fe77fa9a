"""One engine, one workload, one process: prints a line of JSON, a `WorkDone`.

    python -m benchmarks.worker ORDER.json

Run by the interpreter that has the engine: .venv for ours, .venv-peers for the others.
"""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.request import WorkDone, WorkOrder

_MODULES = {
    "vlmflow": "benchmarks.vlmflow_worker",
    "transformers": "benchmarks.peers.transformers_worker",
    "openvino": "benchmarks.peers.openvino_worker",
}


def main() -> None:
    order = WorkOrder.read(Path(sys.argv[1]))
    done: WorkDone = importlib.import_module(_MODULES[order.worker]).work(order)
    print(json.dumps(asdict(done)))


if __name__ == "__main__":
    main()
