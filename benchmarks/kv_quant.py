"""What quant_policy 8, 4 and 16 (float8) cost in accuracy, save in memory and take in time.

    python -m benchmarks.kv_quant [--questions 400] [--repeats 9] [--output FILE]

Accuracy is the shapes checkpoint's on held-out questions; memory and time are the 0.27 B LLaVA's.
Times are CPU seconds of one thread, taken in turns: the cores are shared with others.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kv_rows import error_table, relative_error, synthetic_rows
from benchmarks.workload import make_checkpoint
from examples.shapes.evaluate import accuracy, answer
from examples.shapes.scenes import Question, Scene, held_out
from vlmflow_engine.inputs.builder import InputBuilder
from vlmflow_engine.kernels.layer_kv_cache import LayerKVCache
from vlmflow_engine.kernels.paged_attention import SequenceSpan, paged_attention, plan_attention
from vlmflow_engine.models.families.llava import LlavaModel
from vlmflow_engine.models.family import PagedDecoder
from vlmflow_engine.models.registry import image_format, load_model, read_config
from vlmflow_engine.runner.batch import EmbeddingRows
from vlmflow_engine.runner.encoder_runner import EncoderRunner
from vlmflow_engine.runner.kv_cache import allocate_layer
from vlmflow_engine.vl.fetch import fetch_image

POLICIES = (0, 8, 4, 16)
SHAPES = Path("examples/shapes/checkpoint")
LLAVA = Path("build/benchmarks/llava-0.27b")
HELD_OUT_SEED = 1
BLOCK_SIZE = 16
BATCH, CONTEXT, CHUNK = 16, 704, 640  # decoded sequences, their tokens, tokens of a first chunk

_CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the tables to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = list(held_out(HELD_OUT_SEED, options.questions))
    answers = answer_table(asked)
    inside = look_inside(asked[:24])
    rows = {"shapes keys": inside.keys, "shapes values": inside.values, **synthetic_rows()}
    decoder = load_model(
        make_checkpoint(LLAVA), read_config(LLAVA), dtype=torch.bfloat16, device=_CPU
    ).decoder
    text = "\n".join(
        [
            "# KV cache in 8 and 4 bits and in float8",
            "",
            f"One thread of {os.cpu_count()} shared cores, Python {platform.python_version()}, "
            f"torch {torch.__version__}.",
            "16 is float8 (e4m3).",
            "",
            "## Accuracy",
            "",
            f"The shapes checkpoint (head_dim 32), {options.questions} held-out questions, greedy.",
            "",
            *answers,
            "",
            *difference_table(inside.logit_errors, attention_errors()),
            "",
            "## Error of stored rows",
            "",
            "Root mean square, as a share of the rows' own.",
            "",
            *error_table(rows),
            "",
            "## Memory",
            "",
            *memory_table(),
            "",
            "## Time",
            "",
            f"The 0.27 B LLaVA's decoder in bfloat16: a decode step of {BATCH} sequences at "
            f"{CONTEXT} tokens, and a first chunk of {CHUNK} tokens; CPU time, medians of "
            f"{options.repeats} turns.",
            "",
            *time_table(decoder, options.repeats),
            "",
        ]
    )
    print(text)
    if options.output:
        options.output.write_text(text)


def answer_table(asked: list[tuple[Scene, Question]]) -> list[str]:
    """Exact matches by policy, and how many answers are word for word those without."""
    lines = [
        "| quant_policy | exact match, bfloat16 | same answers as 0 | exact match, float32 "
        "| same answers as 0 |",
        "|---|---|---|---|---|",
    ]
    exact: dict[str, list[str]] = {}
    for policy in POLICIES:
        cells = []
        for dtype in ("bfloat16", "float32"):
            answers = answer(SHAPES, asked, dtype, quant_policy=policy)
            texts = [response.text for response in answers]
            exact.setdefault(dtype, texts)
            same = sum(a == b for a, b in zip(texts, exact[dtype], strict=True))
            cells += [f"{accuracy(asked, answers)['exact_match']:.2%}", f"{same / len(asked):.2%}"]
        lines.append(f"| {policy} | {' | '.join(cells)} |")
    return lines


@dataclass(frozen=True, slots=True)
class Inside:
    """What prompts leave in the cache, and what their logits are off by."""

    keys: Tensor  # [num_rows, head_dim], of all layers and heads
    values: Tensor
    logit_errors: dict[int, float] = field(default_factory=dict)  # of each quantised policy


@torch.inference_mode()
def look_inside(asked: list[tuple[Scene, Question]]) -> Inside:
    """Run prompts of the shapes model in float32, one by one, under each policy."""
    config = read_config(SHAPES)
    form = image_format(config)
    builder = InputBuilder(SHAPES, form, fetch_image, max_image_pixels=1 << 28)
    model = load_model(SHAPES, config, dtype=torch.float32, device=_CPU)
    assert isinstance(model, LlavaModel) and form is not None and builder.normalisation is not None
    encoder = EncoderRunner(model, builder.normalisation, dtype=torch.float32, device=_CPU)
    logits: dict[int, list[Tensor]] = {policy: [] for policy in POLICIES}
    keys, values = [], []
    for scene, question in asked:
        embeds = _embed(builder, encoder, model.decoder, scene, question)
        for policy in POLICIES:
            caches = _allocate(model.decoder, -(-len(embeds) // BLOCK_SIZE), policy, torch.float32)
            logits[policy].append(_first_chunk(model.decoder, embeds, caches))
            if policy == 0:
                for layer in caches:
                    slots = torch.arange(len(embeds))
                    keys.append(layer.key.read_slots(slots, torch.float32).flatten(0, 1))
                    values.append(layer.value.read_slots(slots, torch.float32).flatten(0, 1))
    joined = {policy: torch.cat(parts) for policy, parts in logits.items()}
    errors = {policy: relative_error(joined[policy], joined[0]) for policy in POLICIES[1:]}
    return Inside(torch.cat(keys), torch.cat(values), errors)


def _embed(
    builder: InputBuilder,
    encoder: EncoderRunner,
    decoder: PagedDecoder,
    scene: Scene,
    question: Question,
) -> Tensor:
    content = [{"type": "image", "image": scene.draw()}, {"type": "text", "text": question.text}]
    prepared = builder.build([{"role": "user", "content": content}])
    encoder.encode(prepared.images)
    rows = [
        EmbeddingRows(image.offset, image.content_hash, 0, image.num_tokens)
        for image in prepared.images
    ]
    return decoder.embed(torch.tensor(prepared.token_ids), encoder.rows_of(rows))


@torch.inference_mode()
def attention_errors() -> dict[int, float]:
    """How far attention over Gaussian keys and values is off, decoding, in float32."""
    generator = torch.Generator().manual_seed(0)
    num_tokens, heads, head_dim = 704, 4, 64
    k, v = (torch.randn(num_tokens, heads, head_dim, generator=generator) for _ in range(2))
    q = torch.randn(1, 4 * heads, head_dim, generator=generator)
    num_blocks = num_tokens // BLOCK_SIZE
    metadata = plan_attention(
        [SequenceSpan(1, num_tokens, range(num_blocks))], block_size=BLOCK_SIZE, device=_CPU
    )
    attended = {}
    for policy in POLICIES:
        shape = (num_blocks, BLOCK_SIZE, heads, head_dim)
        cache = allocate_layer(shape, quant_policy=policy, dtype=torch.float32, device=_CPU)
        cache.store(k, v, torch.arange(num_tokens))
        attended[policy] = paged_attention(q, k[-1:], v[-1:], cache, metadata, head_dim**-0.5)
    return {policy: relative_error(attended[policy], attended[0]) for policy in POLICIES[1:]}


def difference_table(logits: dict[int, float], attention: dict[int, float]) -> list[str]:
    return [
        "Off in float32, root mean square:",
        "",
        "| quant_policy | logits of 24 of the prompts | attention over 704 Gaussian tokens |",
        "|---|---|---|",
        *(f"| {policy} | {logits[policy]:.2%} | {attention[policy]:.2%} |" for policy in logits),
    ]


def memory_table() -> list[str]:
    """Bytes of a token, scales counted, for the shapes of models people run."""
    lines = [
        "| KV heads x head_dim x layers | dtype "
        + "".join(f"| bytes/token at {policy} " for policy in POLICIES)
        + "| blocks for the same bytes at 8 | at 4 | at 16 |",
        "|---" * (5 + len(POLICIES)) + "|",
    ]
    for name, heads, head_dim, layers in (
        ("0.27 B LLaVA", 4, 64, 16),
        ("LLaVA-1.5 7B", 32, 128, 32),
        ("8 KV heads of 128", 8, 128, 36),
    ):
        for dtype in (torch.bfloat16, torch.float32):
            sizes = [
                layers
                * allocate_layer(
                    (1, 1, heads, head_dim), quant_policy=policy, dtype=dtype, device=_CPU
                ).num_bytes
                for policy in POLICIES
            ]
            ratios = [f"{sizes[0] / size:.2f} x" for size in sizes[1:]]
            cells = [f"{size:,}" for size in sizes] + ratios
            kind = str(dtype).removeprefix("torch.")
            lines.append(
                f"| {name}: {heads} x {head_dim} x {layers} | {kind} | {' | '.join(cells)} |"
            )
    return lines


@torch.inference_mode()
def time_table(decoder: PagedDecoder, repeats: int) -> list[str]:
    """Seconds of a decode step and of a first chunk, by policy."""
    num_blocks = CONTEXT // BLOCK_SIZE
    caches = {
        policy: _allocate(decoder, BATCH * num_blocks, policy, torch.bfloat16)
        for policy in POLICIES
    }
    generator = torch.Generator().manual_seed(0)
    slots = torch.arange(BATCH * CONTEXT)
    for index in range(decoder.num_layers):
        shape = (len(slots), decoder.num_kv_heads, decoder.head_dim)
        k, v = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
        for layers in caches.values():
            layers[index].store(k, v, slots)
    chunk = torch.randn(CHUNK, decoder.hidden_size, generator=generator).bfloat16()
    step = torch.randn(BATCH, decoder.hidden_size, generator=generator).bfloat16()
    times: dict[tuple[str, int], list[float]] = {}
    for turn in range(repeats + 1):
        for policy, layers in caches.items():
            start = time.process_time()
            _decode(decoder, step, layers)
            middle = time.process_time()
            _first_chunk(decoder, chunk, layers, last_only=True)
            if turn:  # the first one warms up
                times.setdefault(("decode", policy), []).append(middle - start)
                times.setdefault(("chunk", policy), []).append(time.process_time() - middle)
    lines = [
        "| quant_policy | decode step, ms | of policy 0 | first chunk, ms | of policy 0 |",
        "|---|---|---|---|---|",
    ]
    for policy in POLICIES:
        cells = []
        for kind in ("decode", "chunk"):
            own, exact = times[kind, policy], times[kind, 0]
            cells.append(f"{statistics.median(own) * 1000:.0f}")
            cells.append(f"{_median_ratio(own, exact):.2f} x")
        lines.append(f"| {policy} | {' | '.join(cells)} |")
    return lines


def _median_ratio(own: Iterable[float], exact: Iterable[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, exact, strict=True))


def _allocate(
    decoder: PagedDecoder, num_blocks: int, policy: int, dtype: torch.dtype
) -> list[LayerKVCache]:
    shape = (num_blocks, BLOCK_SIZE, decoder.num_kv_heads, decoder.head_dim)
    return [
        allocate_layer(shape, quant_policy=policy, dtype=dtype, device=_CPU)
        for _ in range(decoder.num_layers)
    ]


def _first_chunk(
    decoder: PagedDecoder, embeds: Tensor, caches: list[LayerKVCache], *, last_only: bool = False
) -> Tensor:
    num_tokens = len(embeds)
    span = SequenceSpan(num_tokens, num_tokens, range(-(-num_tokens // BLOCK_SIZE)))
    metadata = plan_attention([span], block_size=BLOCK_SIZE, device=_CPU)
    positions = torch.arange(num_tokens)
    return decoder(embeds, positions, positions[-1:] if last_only else positions, caches, metadata)


def _decode(decoder: PagedDecoder, embeds: Tensor, caches: list[LayerKVCache]) -> Tensor:
    """One more token for each of BATCH sequences, whose blocks lie interleaved."""
    num_blocks = CONTEXT // BLOCK_SIZE
    spans = [
        SequenceSpan(1, CONTEXT, range(index, BATCH * num_blocks, BATCH)) for index in range(BATCH)
    ]
    metadata = plan_attention(spans, block_size=BLOCK_SIZE, device=_CPU)
    positions = torch.full((BATCH,), CONTEXT - 1)
    return decoder(embeds, positions, torch.arange(BATCH), caches, metadata)


if __name__ == "__main__":
    main()
