"""The engines that are measured side by side, and how each is brought to its best setting."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = Path(".venv-peers")
Setting = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One column of the comparison."""

    name: str
    title: str
    python: str
    worker: str
    weights: str  # "bfloat16", "int8": whose floor it is held against
    # To try in this order, as long as the next is faster; after each change of the sources anew.
    settings: tuple[Setting, ...]
    # How optimum-intel is to store the weights; None: the checkpoint is taken as it is.
    export: str | None = None


def known_engines() -> dict[str, Engine]:
    """All that can run here, ours last: so a pair is a peer and what ran after it."""
    peers = str(PEERS / "bin" / "python")
    # Tokens of a step; 256 is OpenVINO's own choice.
    batches = tuple({"max_num_batched_tokens": count} for count in (256, 1024, 4096))
    engines = [
        Engine(
            name="transformers",
            title="transformers.generate, bfloat16",
            python=peers,
            worker="transformers",
            weights="bfloat16",
            settings=tuple({"batch_size": size} for size in (4, 8, 16, 32)),
        ),
        Engine(
            name="openvino",
            title="OpenVINO GenAI, bfloat16",
            python=peers,
            worker="openvino",
            weights="bfloat16",
            settings=batches,
            export="fp16",
        ),
        Engine(
            name="openvino-int8",
            title="OpenVINO GenAI, int8 weights",
            python=peers,
            worker="openvino",
            weights="int8",
            settings=batches,
            export="int8",
        ),
        Engine(
            name="vlmflow",
            title="vlmflow, bfloat16",
            python=sys.executable,
            worker="vlmflow",
            weights="bfloat16",
            settings=({},),
        ),
        Engine(
            name="vlmflow-int8",
            title="vlmflow, W8A8",
            python=sys.executable,
            worker="vlmflow",
            weights="int8",
            settings=({"quant": "int8"},),
        ),
    ]
    return {engine.name: engine for engine in engines}


def best_setting(
    settings: tuple[Setting, ...], seconds_of: Callable[[Setting], float]
) -> tuple[Setting, dict[str, float]]:
    """Climb while it gets faster; return where that ended, and the seconds of all that was tried.

    A single setting is not tried at all.
    """
    tried: dict[str, float] = {}
    best = settings[0]
    if len(settings) == 1:
        return best, tried
    for setting in settings:
        tried[describe(setting)] = seconds_of(setting)
        if tried[describe(setting)] > tried[describe(best)]:
            break
        best = setting
    return best, tried


def describe(setting: Setting) -> str:
    return ", ".join(f"{name} {value}" for name, value in setting.items()) or "as it comes"


def exported(engine: Engine, checkpoint: Path, folder: Path) -> Path:
    """The model in the form that the engine reads; exported once, which takes a minute or two."""
    if engine.export is None:
        return checkpoint
    target = folder / f"openvino-{engine.export}"
    if (target / "openvino_language_model.bin").is_file():
        return target
    print(f"exporting the model for OpenVINO, {engine.export}", flush=True)
    partial = folder / f"openvino-{engine.export}.partial"
    command = [str(PEERS / "bin" / "optimum-cli"), "export", "openvino"]
    command += ["--model", str(checkpoint), "--task", "image-text-to-text"]
    command += ["--weight-format", engine.export, str(partial)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-2000:]}")
    return partial.rename(target)
