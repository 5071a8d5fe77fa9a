"""The documents' examples run as plain scripts, unchanged but for the import.

The models are random checkpoints of the original forms in folders of the models' names; the hosts
of the images are served on loopback, over TLS, by what `sitecustomize` puts under the sockets.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.inputs.pictures import encode, noise
from tests.engine.vl.test_http import certificate
from tests.engine.vl.web import Web, answer, web
from tests.examples import seeds
from tests.tiny_internvl import make_internvl, save_original
from tests.tiny_llava_next import make_tiny_llava_next
from tests.tiny_llava_original import VOCAB_SIZE, write_original
from tests.tiny_tokenizers import write_internlm2

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
TIMEOUT = 150  # seconds; a run takes 6, most of them for imports

# Every name is at one address of the Internet, and who connects to it gets to the test's server.
TRANSPORT = """
import socket

ADDRESS = "93.184.215.14"
connect, look_up = socket.create_connection, socket.getaddrinfo

def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
    if host == "127.0.0.1":
        return look_up(host, port, family, type, proto, flags)
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ADDRESS, port))]

def create_connection(address, *arguments, **options):
    if address == (ADDRESS, 443):
        address = ("127.0.0.1", {port})
    return connect(address, *arguments, **options)

socket.getaddrinfo, socket.create_connection = getaddrinfo, create_connection
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with both models and a photo."""
    folder = tmp_path_factory.mktemp("work")
    text = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 4096}
    write_original(
        folder / "liuhaotian/llava-v1.6-vicuna-7b", make_tiny_llava_next(text_config=text)
    )
    name = folder / "OpenGVLab/InternVL2-8B"
    save_original(name, make_internvl("internlm2"), "internlm2", "300m")
    write_internlm2(name)
    noise(300, 200).save(folder / "photo.jpg")
    return folder


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, dict[str, str]]]:
    """The documents' hosts, and the environment in which they are found."""
    own = tmp_path_factory.mktemp("hosts")
    with web() as server:
        names = [url.split("/")[2] for url in (seeds.POSE, seeds.PHOTO)]
        server.tls, _ = certificate(own, *names)
        for url in (seeds.POSE, seeds.PHOTO):
            server.routes["/" + url.split("/", 3)[3]] = answer(encode(noise(640, 480), "JPEG"))
        (own / "sitecustomize.py").write_text(TRANSPORT.replace("{port}", str(server.port)))
        path = os.pathsep.join((str(own), str(ROOT / "engine")))
        trust = {"SSL_CERT_FILE": str(own / "both.pem"), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        yield server, os.environ | trust


@pytest.mark.parametrize("name", ["DEFAULTS", "OPENAI", "STREAM", "SINGLE_IMAGE", "CHAT"])
def test_a_documents_example_runs_as_it_stands(name, folder, hosts, tmp_path):
    server, environment = hosts
    server.requests.clear()
    script = tmp_path / "example.py"
    script.write_text(getattr(seeds, name))
    ran = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr and "error" not in ran.stdout, ran.stdout + ran.stderr
    assert ran.stdout.strip(), ran.stderr
    hosts_asked = [request.split("Host: ")[1].split("\r\n")[0] for request in server.requests]
    expected = {"SINGLE_IMAGE": "example.com", "CHAT": None}.get(name, "raw.githubusercontent.com")
    assert hosts_asked == ([expected] if expected else [])
