"""A real S3 server on loopback for demo and tests: moto behind its own HTTP front.

    python -m tools.loopback_s3

prints its URL and serves until its standard input ends, for those who have no moto themselves.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any


@contextmanager
def loopback_s3() -> Iterator[str]:
    """Serve S3 until the block ends; yield the endpoint's URL."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application, lock = DomainDispatcherApplication(create_backend_app), Lock()

    def one_at_a_time(environ: Any, start_response: Any) -> Any:
        # moto looks whether an object is there and writes it in two steps; S3 does it in one.
        with lock:
            return application(environ, start_response)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with loopback_s3() as endpoint:
        print(endpoint, flush=True)
        sys.stdin.read()
