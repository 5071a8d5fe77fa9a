"""Images fetched a second by the job's fetcher, beside bare boto3 with as many threads.

python -m benchmarks.job_media [--images 400] [--kib 20] [--threads 16] [--rounds 5]

Two servers, each a process of its own: moto (`tools/loopback_s3.py`), which is slower than any
client, and one that answers from memory, faster than any. Against the second the client's own work
is all that counts. Milliseconds are CPU time of the client's process an image.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tools.loopback_s3 import loopback_s3
from vlmflow.job.media import MediaFetcher
from vlmflow.job.media_cache import MediaCache
from vlmflow.job.record import Record
from vlmflow.job.store import StoreOpener
from vlmflow.job.store.s3 import make_client

BUCKET = "bench"
_BARE = "bare boto3"
Fetch = Callable[[str], bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--kib", type=int, default=20, help="of an image")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", choices=("moto", "memory"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    if options.serve:
        serve(options.serve)
        return
    print("server  what               GET/s   of bare  CPU ms  of bare")
    for kind in ("moto", "memory"):
        with server(kind) as endpoint:
            rounds = measure(
                endpoint, options.images, options.kib << 10, options.threads, options.rounds
            )
        for name in rounds[0]:
            numbers = [
                (rate, rate / r[_BARE][0], 1000 * cpu, cpu / r[_BARE][1])
                for r in rounds
                for rate, cpu in [r[name]]
            ]
            rate, of_bare, cpu, cpu_of_bare = map(statistics.median, zip(*numbers, strict=True))
            shown = f"{rate:>6.0f}  {of_bare:>8.2f} {cpu:>7.2f} {cpu_of_bare:>8.2f}"
            print(f"{kind:<7} {name:<17} {shown}", flush=True)


def measure(
    endpoint: str, num_images: int, num_bytes: int, num_threads: int, num_rounds: int
) -> list[dict[str, tuple[float, float]]]:
    """Of each round, images a second and CPU seconds an image of every way."""
    client = make_client(endpoint, max_connections=num_threads + 8)
    client.create_bucket(Bucket=BUCKET)
    keys = [f"in/{number}.jpg" for number in range(num_images)]
    for key in keys:
        client.put_object(Bucket=BUCKET, Key=key, Body=os.urandom(num_bytes))
    opener = StoreOpener(endpoint, max_connections=num_threads + 8)

    def bare(key: str) -> bytes:
        return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def ours(cache: MediaCache | None) -> Fetch:
        fetcher = MediaFetcher(
            opener, f"s3://{BUCKET}/in/m.jsonl", max_image_bytes=1 << 30, cache=cache
        )

        def fetch(key: str) -> bytes:
            result = fetcher.fetch(Record(0, 1, "r", None, (f"s3://{BUCKET}/{key}",), {}, {}))
            assert isinstance(result, list), result
            return result[0].data

        return fetch

    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(num_rounds):
        with (
            tempfile.TemporaryDirectory() as folder,
            ThreadPoolExecutor(num_threads) as pool,
        ):
            cache = MediaCache(Path(folder), 1 << 40, print)
            ways = {
                _BARE: bare,
                "without a cache": ours(None),
                "an empty cache": ours(cache),
                "all in the cache": ours(cache),
            }
            list(pool.map(bare, keys[: 2 * num_threads]))  # connections are open
            list(pool.map(ours(None), keys[: 2 * num_threads]))
            seen: dict[str, tuple[float, float]] = {}
            names = list(ways)
            # Bare boto3 goes first in one round and last in the next.
            for name in names if number % 2 else [*names[1:], names[0]]:
                fetch = ways[name]
                begin, begin_cpu = time.perf_counter(), time.process_time()
                num_received = sum(len(data) for data in pool.map(fetch, keys))
                seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
                assert num_received == num_images * num_bytes
                seen[name] = num_images / seconds, cpu / num_images
                cache.flush()
            rounds.append({name: seen[name] for name in names})
    return rounds


@contextmanager
def server(kind: str) -> Iterator[str]:
    """Run one in a process of its own; yield its URL."""
    command = [sys.executable, "-m", "benchmarks.job_media", "--serve", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def serve(kind: str) -> None:
    """Serve until killed; the first line of output is the URL."""
    if kind == "moto":
        with loopback_s3() as endpoint:
            print(endpoint, flush=True)
            time.sleep(3600)
    import asyncio

    asyncio.run(_serve_from_memory())


async def _serve_from_memory() -> None:
    """As little of S3 as two clients need: PUT, GET, and GET on condition of a change."""
    import asyncio

    objects: dict[str, bytes] = {}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                method, path, _ = first.split(" ")
                pairs = (line.partition(": ") for line in lines)
                fields = {name.lower(): value for name, _, value in pairs}
                if fields.get("expect") == "100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                tag, status, answer = f'"{path}"', "200 OK", b""
                if method == "PUT":
                    objects[path] = body
                elif fields.get("if-none-match") == tag:
                    status = "304 Not Modified"
                else:
                    answer = objects[path]
                writer.write(
                    f"HTTP/1.1 {status}\r\nETag: {tag}\r\n"
                    f"Content-Length: {len(answer)}\r\n\r\n".encode()
                    + answer
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", flush=True)
    await listener.serve_forever()


if __name__ == "__main__":
    main()
