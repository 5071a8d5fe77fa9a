"""The scripts of examples/engine: run as files, from standard input, and as a notebook's cells."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from examples.shapes.scenes import Scene, ask, draw_scene
from vlmflow_engine import GenerationConfig, pipeline
from vlmflow_engine.vl import load_image

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples/engine"
CHECKPOINT = ROOT / "examples/shapes/checkpoint"
TIMEOUT = 150  # seconds; a run takes 5, most of them for imports
# Of these the model is certain, whichever chat template is put around the question.
SCENES = [draw_scene(random.Random(seed)) for seed in (0, 4)]
CENTRE = 4

# What a notebook's kernel does with cells: one namespace for all, and no file.
NOTEBOOK = """
import json, sys
cells = json.load(open(sys.argv[1]))
names = {"__name__": "__main__"}
for source, arguments in cells:
    sys.argv = ["kernel", *arguments]
    exec(compile(source, "<cell>", "exec"), names)
    print("<end of cell>")
"""


@dataclass(frozen=True)
class Run:
    """What became of a process."""

    code: int
    output: str
    errors: str
    num_workers: int  # processes that prepared prompts for it
    left: list[psutil.Process]  # those that outlived it


def run(arguments: list[str], stdin: Path | None, folder: Path) -> Run:
    """Run Python far from the repository, and watch its children."""
    children: set[psutil.Process] = set()
    workers: set[psutil.Process] = set()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "engine"),
        # Most of a run is imports: where bytecode is not kept, they are compiled each time anew.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(folder.parent / "bytecode"),
    }
    with (
        (stdin or Path(os.devnull)).open() as source,
        (folder / "output").open("w+") as output,
        (folder / "errors").open("w+") as errors,
    ):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdin=source,
            stdout=output,
            stderr=errors,
        )
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
            try:
                children.update(psutil.Process(process.pid).children(recursive=True))
            except psutil.NoSuchProcess:
                break
            workers.update(child for child in children - workers if is_worker(child))
            time.sleep(0.05)
        code = process.wait()
        _, left = psutil.wait_procs(children, timeout=5)
        output.seek(0)
        errors.seek(0)
        return Run(code, output.read(), errors.read(), len(workers), left)


def is_worker(process: psutil.Process) -> bool:
    """Whether it prepares prompts; the compiler of the CPU's kernels is a child, too."""
    try:
        return "vlmflow_engine.inputs.worker" in process.cmdline()
    except psutil.Error:
        return False


def arguments_of(script: str, images: list[Path]) -> list[str]:
    model, first = str(CHECKPOINT), images[0]
    if script == "batch":
        return [model, *map(str, images)]
    if script == "chat":
        return [model, str(first)]
    return [model, first.as_uri()]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    paths = [folder / f"{number}.png" for number in range(len(SCENES))]
    for scene, path in zip(SCENES, paths, strict=True):
        scene.draw(192).save(path)
    return paths


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory) -> dict[str, Run]:
    """All runs: one, whose compiled imports serve the others, and then two at a time."""
    as_files = ["single_image", "openai_messages", "streaming", "chat", "batch"]
    work: dict[str, Callable[[], Run]] = {}

    def add(name: str, arguments: list[str], stdin: Path | None = None) -> None:
        work[name] = lambda: run(arguments, stdin, tmp_path_factory.mktemp("run"))

    for script in as_files:
        add(script, [str(SCRIPTS / f"{script}.py"), *arguments_of(script, images)])
    add("batch from stdin", ["-", *arguments_of("batch", images)], SCRIPTS / "batch.py")
    cells = tmp_path_factory.mktemp("notebook") / "cells.json"
    cells.write_text(
        json.dumps(
            [
                ((SCRIPTS / f"{script}.py").read_text(), arguments_of(script, images))
                for script in as_files
            ]
        )
    )
    add("notebook", ["-c", NOTEBOOK, str(cells)])
    first, *others = work.values()
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(work, [first(), *pool.map(lambda job: job(), others)], strict=True))


@pytest.fixture(scope="module")
def expected(images) -> dict[str, str]:
    """What each script prints: the truth about the scenes where the model can know it."""
    centre = SCENES[0].items[[item.place for item in SCENES[0].items].index(CENTRE)].colour
    whole = (
        "finish_reason=stop\nindex=0\nchoice=0\ninput_token_len={}\ngenerate_token_len={}\n"
        f"cached_tokens=0\ntext:\n{centre}\n"
    )
    counts = [str(len(scene.items)) for scene in SCENES]
    # It was trained on one question about one image: of more, the engine of this process is judge.
    with pipeline(str(CHECKPOINT)) as pipe:
        question = "What colour is the shape at the centre?"
        image, second = (load_image(path) for path in images)
        turns = [
            {"role": "user", "content": [{"type": "image", "image": image}, text_part(0)]},
            {"role": "assistant", "content": counts[0]},
            {"role": "user", "content": question},
        ]
        parts = [{"type": "image", "image": image}, {"type": "image", "image": second}]
        both = [{"role": "user", "content": [*parts, text_part(1)]}]
        follow_up, compared = pipe([turns, both], GenerationConfig())
    return {
        "single_image": whole,
        "openai_messages": whole,
        "streaming": describe(SCENES[0]),
        "chat": f"{counts[0]}\n{follow_up.text}\n2 turns\n",
        "batch": f"0 {counts[0]}\n1 {counts[1]}\n{compared.input_token_len} {compared.text}\n",
    }


def text_part(number: int) -> dict[str, str]:
    return {"type": "text", "text": ("How many shapes are there?", "Describe the scene.")[number]}


def describe(scene: Scene) -> str:
    return ask(random.Random(0), scene, "describe").answer


def assert_output(output: str, expected: str) -> None:
    if "{}" in expected:  # the counts of tokens, which are a fact of the tokenizer
        head, middle, tail = expected.split("{}")
        assert output.startswith(head) and middle in output and output.endswith(tail)
    else:
        assert output == expected


@pytest.mark.parametrize(
    "name",
    [
        "single_image",
        "openai_messages",
        "streaming",
        "chat",
        "batch",
        "batch from stdin",
    ],
)
def test_a_script_without_a_main_guard_runs_to_its_end(name, runs, expected):
    run = runs[name]
    assert run.code == 0, run.errors
    assert_output(run.output, expected[name.split()[0]])
    assert "Traceback" not in run.errors
    assert run.num_workers == 1
    assert run.left == []


def test_a_notebook_runs_all_of_them_one_after_another(runs, expected):
    run = runs["notebook"]
    assert run.code == 0, run.errors
    outputs = run.output.split("<end of cell>\n")
    assert outputs.pop() == ""
    for output, wanted in zip(outputs, expected.values(), strict=True):
        assert_output(output, wanted)
    # `pipe` of each cell lets go of the model of the cell before.
    assert run.num_workers == len(outputs)
    assert run.left == []
