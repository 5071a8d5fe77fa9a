"""The demo's manifest and images on the S3 server of docker-compose.yml.

    python -m examples.compose_input URL

It waits until the server answers: compose starts them together.
"""

import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from examples.demo import upload
from examples.shapes.manifest import write_manifest

_START_SECONDS = 60.0


def main(endpoint: str) -> None:
    wait_for(endpoint, _START_SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        upload(write_manifest(Path(folder)).parent, endpoint)
    print(f"the demo's manifest is on {endpoint}")


def wait_for(endpoint: str, seconds: float) -> None:
    """Return when a server answers, whatever it says. Raises SystemExit with a sentence."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError as error:
            if time.monotonic() >= deadline:
                raise SystemExit(
                    f"no S3 server answers at {endpoint} after {seconds:.0f} s: {error}"
                ) from None
            time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1])
