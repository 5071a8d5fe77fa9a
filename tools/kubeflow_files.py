"""Write what is generated for Kubeflow: the pipelines' YAML and the components' READMEs.

    make compile

Runs in .venv-kubeflow. `make test` compares what is checked in with what this would write.
"""

import importlib
import importlib.util
import inspect
import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
PIPELINES = ROOT / "pipelines"
COMPILED = PIPELINES / "compiled"
COMPONENTS = ROOT / "components" / "vlmflow" / "kubeflow"
_HEADER = "# Written by `make compile` of the pipeline's file; do not edit.\n"
NAMES = ("plan_shards", "batch_inference", "merge_report", "evaluate", "compare_gate")


def main() -> None:
    """Write all of them."""
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


def generated() -> dict[Path, str]:
    """Every generated file and what is to be in it."""
    # Read when a component is imported; a release names its own image.
    os.environ.pop("VLMFLOW_IMAGE", None)
    files = {COMPONENTS / name / "README.md": readme(load_component(name)) for name in NAMES}
    for source in sorted(PIPELINES.glob("*.py")):
        files[COMPILED / f"{source.stem}.yaml"] = compiled(load_pipeline(source.stem))
    return files


def load_component(name: str) -> Any:
    """A component, by the name of its folder."""
    return getattr(importlib.import_module(f"vlmflow.kubeflow.{name}.component"), name)


def load_pipeline(name: str) -> ModuleType:
    """A pipeline's file, loaded by its path as kfp's users do: it is in no package."""
    spec = importlib.util.spec_from_file_location(name, PIPELINES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(pipeline: ModuleType) -> str:
    """The two documents of a pipeline with its default settings."""
    from vlmflow.kubeflow.submit import compile_pipeline

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_pipeline(pipeline.make_pipeline(), path)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # kfp's own comment at the top has defaults in another order each time.
    body = lines[next(n for n, line in enumerate(lines) if not line.startswith("#")) :]
    return "".join([_HEADER, *body])


def readme(component: Any) -> str:
    """What a component is, as its signature and its docstring say."""
    import docstring_parser

    function = component.pipeline_func
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    told = {item.arg_name: " ".join((item.description or "").split()) for item in doc.params}
    spec = component.component_spec
    inputs = [
        f"| `{name}` | {given.type} | {_default(given)} | {told[name]} |"
        for name, given in spec.inputs.items()
    ]
    outputs = [
        f"| `{name}` | {output.type.partition('@')[0]} | {told[name]} |"
        for name, output in spec.outputs.items()
    ]
    name = function.__name__
    container = spec.implementation.container
    words = [*container.command, *(str(argument) for argument in container.args)]
    return "\n".join(
        [
            f"# {name}",
            "",
            doc.short_description or "",
            "",
            *([doc.long_description, ""] if doc.long_description else []),
            f"    from vlmflow.kubeflow.{name}.component import {name}",
            "",
            "## Inputs",
            "",
            "| Input | Type | Default | |",
            "| --- | --- | --- | --- |",
            *inputs,
            "",
            "## Outputs",
            "",
            "| Output | Type | |",
            "| --- | --- | --- |",
            *outputs,
            "",
            "## What runs",
            "",
            *(f"    {word}" for word in words),
            "",
            "`{{$}}` is KFP's executor input: the command writes the outputs where it says. An",
            "option that comes out as `--name=` counts as left out. See docs/kubeflow.md.",
            "",
        ]
    )


def _default(given: Any) -> str:
    return "" if not given.optional else f"`{given.default!r}`"


if __name__ == "__main__":
    main()
