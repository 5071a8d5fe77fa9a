"""Seconds and memory that it takes to load a checkpoint, beside transformers and `cat`.

python -m benchmarks.loading [--layers 40] [--rounds 3] [--folder DIR]

A Llama of random weights is written in shards: in bfloat16, and in float32 from which bfloat16 is
made. Each measurement is a process of its own. vlmflow packs what it reads, as its engine does on
a CPU. "Peak" is the growth of the resident set while it
loads, its highest value (with the file's pages that are mapped), over the bytes of the weights as
they stay. Cold: the files were put out of the page cache first; the disk's own rate is that of
`cat` in the same round.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

_SHARD_BYTES = 256 << 20
_WAYS = ("cat", "vlmflow", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=40, help="of 24 MB each, in bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the checkpoint is written (default: temporary)")
    parser.add_argument("--measure", choices=_WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, Path(options.folder))))
        return
    print("stored    cache  what             s     MB/s  of cat   peak")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for dtype in ("bfloat16", "float32"):
            checkpoint = write_checkpoint(Path(folder) / dtype, options.layers, dtype)
            for is_cold in (True, False):
                rounds = [
                    {way: run(way, checkpoint, is_cold=is_cold) for way in _WAYS}
                    for _ in range(options.rounds)
                ]
                show(dtype, is_cold, rounds)


def show(dtype: str, is_cold: bool, rounds: list[dict[str, dict[str, float]]]) -> None:
    for way in _WAYS:
        results = [of_round[way] for of_round in rounds]
        seconds = statistics.median(r["seconds"] for r in results)
        rate = statistics.median(r["file_bytes"] / r["seconds"] / 1e6 for r in results)
        share = statistics.median(r["cat"]["seconds"] / r[way]["seconds"] for r in rounds)
        ratio = statistics.median(r["peak_ratio"] for r in results)
        peak = "" if way == "cat" else f"{ratio:>6.2f}"
        cache = "cold" if is_cold else "warm"
        print(f"{dtype:<9} {cache:<6} {way:<13} {seconds:>5.2f} {rate:>8.0f} {share:>7.2f} {peak}")


def run(way: str, folder: Path, *, is_cold: bool = False) -> dict[str, float]:
    """Measure one way in a process of its own."""
    if is_cold:
        forget(folder.glob("*.safetensors"))
    command = [sys.executable, "-m", "benchmarks.loading", "--measure", way, "--folder"]
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(way: str, folder: Path) -> dict[str, float]:
    """Load once, here. `peak_ratio` is 0 for `cat`, whose memory is not ours."""
    files = sorted(folder.glob("*.safetensors"))
    file_bytes = sum(path.stat().st_size for path in files)
    if way == "cat":
        start = time.perf_counter()
        # Through a pipe: cat writes nothing at all into /dev/null that it sees.
        subprocess.run("cat *.safetensors | cat > /dev/null", shell=True, cwd=folder, check=True)
        return {"seconds": time.perf_counter() - start, "file_bytes": file_bytes, "peak_ratio": 0}
    load = _vlmflow(folder) if way == "vlmflow" else _transformers(folder)
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    start = time.perf_counter()
    _, tensors, num_bytes = load()
    for tensor in tensors:
        tensor.view(-1)[:: 4096 // tensor.itemsize].sum()  # a map has read nothing till it is used
    seconds = time.perf_counter() - start
    peak = _memory("VmHWM") - before
    return {"seconds": seconds, "file_bytes": file_bytes, "peak_ratio": peak / num_bytes}


# The model, tensors of it that nobody may have looked at yet, and the bytes of all of them.
Load = Callable[[], tuple[Any, list[Any], int]]


def _vlmflow(folder: Path) -> Load:
    import torch

    from vlmflow_engine.config import PytorchEngineConfig
    from vlmflow_engine.layers.weight_format import choose_format
    from vlmflow_engine.models.decoder import Decoder
    from vlmflow_engine.models.registry import load_model, read_config

    config, device, dtype = read_config(folder), torch.device("cpu"), torch.bfloat16
    weight_format = choose_format(device, dtype, PytorchEngineConfig())
    torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # its threads and buffers are not the weights'

    def load() -> tuple[Any, list[Any], int]:
        model = load_model(folder, config, dtype=dtype, device=device, weight_format=weight_format)
        decoder = model.decoder
        assert isinstance(decoder, Decoder)
        linears = [*decoder.linears, decoder.lm_head]
        size = decoder.embedding.numel() + sum(prod(linear.weight.shape) for linear in linears)
        return model, [decoder.embedding], size * dtype.itemsize

    return load


def _transformers(folder: Path) -> Load:
    import torch
    from transformers import LlamaForCausalLM

    torch.ones(1000, 1000) @ torch.ones(1000, 1000)

    def load() -> tuple[Any, list[Any], int]:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        tensors = [parameter.data for parameter in model.parameters()]
        return model, tensors, sum(tensor.nbytes for tensor in tensors)

    return load


def write_checkpoint(folder: Path, num_layers: int, dtype_name: str) -> Path:
    """Write random weights of a Llama of this many layers; 131 MB and 24 MB a layer in bfloat16."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    dtype: torch.dtype = getattr(torch, dtype_name)
    hidden, inner, vocabulary, kv = 1024, 2816, 32_000, 512
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "dtype": dtype_name,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(num_layers):
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, shape in shapes.items():
        if sum(tensor.nbytes for tensor in shards[-1].values()) > _SHARD_BYTES:
            shards.append({})
        shards[-1][name] = torch.randn(shape).to(dtype)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def forget(paths: Iterable[Path]) -> None:
    """Put files out of the page cache, as far as the kernel does it for a user."""
    import os

    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        with suppress(OSError):
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _memory(name: str) -> int:
    """A value of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


if __name__ == "__main__":
    main()
