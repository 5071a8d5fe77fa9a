"""llguidance beside xgrammar: what a response_format costs, by size of the vocabulary.

    python -m benchmarks.grammar [--output benchmarks/results/grammar.md]

Needs both, and only llguidance is a dependency: `uv pip install --no-deps xgrammar apache-tvm-ffi`
(with its dependencies it brings Triton). Each pair of library and vocabulary runs in a process of
its own and is measured in CPU time, so that neighbours do not count. Answers are written token by
token as the tokenizer spells them, by 16 matchers in turn.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.grammar_cases import CASES, Case
from benchmarks.grammar_libraries import LIBRARIES
from vlmflow_engine.runner.grammar import GrammarCompiler, mask_rows

BATCH_SIZE = 16
EOS = 2
VOCABULARY_SIZES = (512, 32_000, 151_000)
CACHE = Path("build/benchmarks")
SHAPES = Path("examples/shapes/checkpoint/tokenizer.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, help="write the tables to this file too")
    parser.add_argument("--measure", nargs=3, metavar=("LIBRARY", "TOKENIZER", "SIZE"))
    options = parser.parse_args()
    if options.measure:
        library, tokenizer, size = options.measure
        print(json.dumps(_measure(library, Path(tokenizer), int(size))))
        return
    results = {}
    for size in VOCABULARY_SIZES:
        tokenizer_path = SHAPES if size == 512 else _train(size)
        for name in (*LIBRARIES, "vlmflow"):
            command = [sys.executable, "-m", "benchmarks.grammar", "--measure", name]
            command += [str(tokenizer_path), str(size)]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[name, size] = json.loads(printed.splitlines()[-1])
            print(f"{name}, {size}: done", flush=True)
    tables = _tables(results)
    print(tables)
    if options.output:
        options.output.write_text(tables)


def _measure(name: str, tokenizer_path: Path, size: int) -> dict[str, Any]:
    if name == "vlmflow":
        return _measure_ours(tokenizer_path, size)
    start = time.process_time()
    library = LIBRARIES[name]()
    imported = time.process_time()
    library.prepare(tokenizer_path.read_text(), size, EOS)
    prepared = time.process_time()
    cases = {}
    for case in CASES:
        compiling = []
        for _ in range(3):
            began = time.process_time()
            compiled = library.compile(case)
            compiling.append(time.process_time() - began)
        matchers = [library.new_matcher(compiled) for _ in range(BATCH_SIZE)]
        masks = []
        for token_id in _spell(tokenizer_path, case):
            for row, matcher in enumerate(matchers):
                began = time.process_time()
                library.fill(matcher, row)
                masks.append(time.process_time() - began)
            for matcher in matchers:
                library.accept(matcher, token_id)
        cases[case.name] = {"compile": min(compiling), "masks": masks}
    return {
        "import": imported - start,
        "prepare": prepared - imported,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cases": cases,
    }


def _measure_ours(tokenizer_path: Path, size: int) -> dict[str, Any]:
    """The whole of mask_rows: masks made, expanded and written over logits, on the CPU."""
    compiler = GrammarCompiler(tokenizer_path.read_text(), vocab_size=size, eos_token_ids=[EOS])
    steps = []
    for case in CASES:
        grammar = compiler.compile(case.response_format)
        matchers = [grammar.new_matcher() for _ in range(BATCH_SIZE)]
        for token_id in _spell(tokenizer_path, case):
            logits = torch.zeros(BATCH_SIZE, size)
            began = time.process_time()
            mask_rows(logits, dict(enumerate(matchers)))
            steps.append(time.process_time() - began)
            for matcher in matchers:
                matcher.accept(token_id)
        if not all(matcher.can_end for matcher in matchers):
            raise SystemExit(f"{case.name}: the answer was not accepted")
    return {"steps": steps}


def _spell(tokenizer_path: Path, case: Case) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    ids: list[int] = tokenizer.encode(case.answer, add_special_tokens=False).ids
    return ids


def _train(size: int) -> Path:
    """A byte-level BPE of this size, of the Python sources installed here: words and code."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path = CACHE / f"bpe-{size}.json"
    if not path.is_file():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_sources(400 * size), trainer)
        if tokenizer.get_vocab_size() != size:
            raise SystemExit(f"too few sources installed for a vocabulary of {size}")
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(path))
    return path


def _sources(num_chars: int) -> Iterator[str]:
    for file in sorted(Path(torch.__file__).parent.parent.rglob("*.py")):
        text = file.read_text(encoding="utf-8", errors="ignore")
        yield text
        num_chars -= len(text)
        if num_chars < 0:
            return


def _tables(results: dict[tuple[str, int], dict[str, Any]]) -> str:
    lines = [
        "# Grammars: llguidance beside xgrammar",
        "",
        f"llguidance {version('llguidance')}, xgrammar {version('xgrammar')}, tokenizers "
        f"{version('tokenizers')}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores; CPU time. Vocabularies: that of "
        "examples/shapes, and byte-level BPE trained on the Python sources installed.",
        "",
        "| vocabulary | library | import s | prepare s | compile ms, median | worst "
        "| mask us, mean | p99 | worst | peak RSS MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in VOCABULARY_SIZES:
        for name in LIBRARIES:
            result = results[name, size]
            compiling = [case["compile"] * 1e3 for case in result["cases"].values()]
            masks = sorted(m * 1e6 for case in result["cases"].values() for m in case["masks"])
            lines.append(
                f"| {size:,} | {name} | {result['import']:.2f} | {result['prepare']:.2f} "
                f"| {statistics.median(compiling):,.1f} | {max(compiling):,.1f} "
                f"| {statistics.mean(masks):,.0f} | {masks[len(masks) * 99 // 100]:,.0f} "
                f"| {masks[-1]:,.0f} | {result['peak_rss_bytes'] / 2**20:,.0f} |"
            )
    size = VOCABULARY_SIZES[-1]
    lines += [
        "",
        f"By form, at {size:,} tokens: compile ms, and mask us a token (mean of {BATCH_SIZE} "
        "matchers in turn).",
        "",
        "| form | " + " | ".join(f"{name} compile | mask" for name in LIBRARIES) + " |",
        "|---|" + "---|---|" * len(LIBRARIES),
    ]
    for case in CASES:
        cells = []
        for name in LIBRARIES:
            measured = results[name, size]["cases"][case.name]
            cells.append(f"{measured['compile'] * 1e3:,.1f}")
            cells.append(f"{statistics.mean(measured['masks']) * 1e6:,.0f}")
        lines.append(f"| {case.name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"`mask_rows` of {BATCH_SIZE} rows of float32 logits on the CPU, a step, all forms:",
        "",
        "| vocabulary | ms, median | p99 |",
        "|---|---|---|",
    ]
    for size in VOCABULARY_SIZES:
        steps = sorted(step * 1e3 for step in results["vlmflow", size]["steps"])
        lines.append(
            f"| {size:,} | {statistics.median(steps):.2f} | {steps[len(steps) * 99 // 100]:.2f} |"
        )
    return "\n".join([*lines, "", DECISION])


DECISION = """\
Kept: llguidance. It compiles in milliseconds at every size, so a new schema does not hold up a
step; it refuses what it cannot enforce, where xgrammar compiles uniqueItems, not, multipleOf and
overlapping oneOf and then accepts what breaks them; its work is bounded by counters; and it is one
wheel without dependencies, where xgrammar imports transformers and asks for Triton. What it costs:
preparing a large vocabulary takes longer, once.
"""


if __name__ == "__main__":
    main()
