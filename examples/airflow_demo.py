"""A real Airflow with all that a first run needs: S3, MLflow, data, connections.

    make airflow

Everything is on loopback and in build/airflow. It stays until Ctrl-C, and leaves no process.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

from examples.demo import BUCKET
from tools.airflow_connections import add_connections
from tools.airflow_standalone import USER, airflow_standalone
from tools.loopback_services import loopback_services

FOLDER = Path("build/airflow")
DAGS = Path(__file__).parents[1] / "dags"


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "MLFLOW_RUN_ID"):
        os.environ.pop(name, None)
    print("starting S3, MLflow and Airflow: half a minute, or a few on a busy machine", flush=True)
    with (
        loopback_services(FOLDER / "services") as services,
        airflow_standalone(FOLDER / "home", DAGS) as airflow,
    ):
        add_connections(airflow.api, services.s3, services.mlflow, Path(sys.executable))
        airflow.api.wait_for_dag("vlm_batch_inference", seconds=120)
        print(
            f"\nAirflow     {airflow.url}   user {USER}   password {airflow.password}\n"
            f"MLflow      {services.mlflow}\n"
            f"S3          {services.s3}   bucket {BUCKET}, any credentials\n"
            f"log         {airflow.home / 'standalone.log'}\n\n"
            "Trigger the DAG vlm_batch_inference: its form is filled in. Ctrl-C ends everything.",
            flush=True,
        )
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one leaves processes
            print("\nending", flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
