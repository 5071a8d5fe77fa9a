"""Write docs/api/ from the docstrings and field comments of what the engine makes public.

make docs                            write the pages
python -m tools.api_reference --check    exit with 1 if the committed pages are not up to date
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.api_source import ENGINE, PACKAGE, Definition, Field, Function, Module

FOLDER = ENGINE.parent / "docs" / "api"
MODULES = (PACKAGE, f"{PACKAGE}.vl", f"{PACKAGE}.vl.constants", f"{PACKAGE}.messages")
ERRORS = f"{PACKAGE}.errors"
_WRITTEN = "<!-- Written by `make docs` from the sources; changes belong there. -->\n"


@dataclass(frozen=True, slots=True)
class Page:
    name: str
    title: str
    opening: str
    names: tuple[str, ...]  # public ones, or "module:name" of what public ones return
    sections: tuple[tuple[str, str], ...] = ()  # headings, and the modules whose docstrings follow


PAGES = (
    Page(
        "pipeline",
        "Loading a model and asking it",
        "One prompt, a batch, a stream or a conversation.",
        ("pipeline", "Pipeline"),
    ),
    Page(
        "generation",
        "Generation config",
        "How one answer is generated.",
        ("GenerationConfig",),
        (("response_format", f"{PACKAGE}.runner.response_format"),),
    ),
    Page(
        "engine",
        "Engine configs",
        "How an engine runs: sizes, precision, caches, limits. Every config is checked when it is "
        "made, and once more when it is used.",
        ("PytorchEngineConfig", "TurbomindEngineConfig", "VisionConfig", "SpeculativeConfig"),
    ),
    Page(
        "responses",
        "Responses and sessions",
        "What comes back, what a conversation holds, and what the engine tells about itself.",
        (
            "Response",
            "Session",
            f"{PACKAGE}.engine:EngineInfo",
            f"{PACKAGE}.stats:EngineStats",
        ),
    ),
    Page(
        "media",
        "Images and videos",
        "What a prompt may hold beside text, from wherever it is.",
        (
            "load_image",
            "load_image_from_url",
            "encode_image_base64",
            "load_video",
            "fetch_image",
            "MediaFetcher",
        ),
    ),
    Page(
        "prompts",
        "Prompts, chat templates and tokens",
        "What may be asked, and how it becomes what the model was trained on.",
        ("IMAGE_TOKEN", "ChatTemplateConfig", "Tokenizer"),
        (("Forms of a prompt", f"{PACKAGE}.inputs.prompts"),),
    ),
)


def render_all() -> dict[str, str]:
    """The text of every page, by its file's name."""
    public = {name: module for module in reversed(MODULES) for name in Module(module).public}
    public.pop("__version__")
    pages, rows = {}, []
    for page in PAGES:
        blocks = [_WRITTEN, f"# {page.title}\n", f"{page.opening}\n"]
        for name in page.names:
            module, _, inner = name.rpartition(":")
            source = module or public.pop(inner)
            definition = Module(source).find(inner)
            blocks += _definition(definition, "" if module else source)
            link = f"[`{inner}`]({page.name}.md#{_anchor(definition)})"
            rows.append(f"| {link} | {_cell(_first(definition))} |")
        for heading, module in page.sections:
            blocks += [f"## {heading}\n", _markdown(Module(module).docstring)]
        pages[f"{page.name}.md"] = "\n".join(blocks)
    if public:
        raise SystemExit(f"no page has {', '.join(public)}; add them to PAGES in {__file__}")
    pages["errors.md"] = _errors_page()
    errors = f"| [`{PACKAGE}.errors`](errors.md) | Every error, and what it says about a request. |"
    pages["README.md"] = "\n".join([_WRITTEN, _INDEX, "| | |", "|---|---|", *rows, errors, ""])
    return pages


def undocumented() -> list[str]:
    """Public names, methods and fields that nothing explains."""
    definitions = [
        Module(name.rpartition(":")[0]).find(name.rpartition(":")[2])
        if ":" in name
        else _find_public(name)
        for page in PAGES
        for name in page.names
    ]
    return [name for item in [*definitions, *_errors()] for name in item.undocumented]


_INDEX = f"""# The engine's Python interface

Names are imported from `{PACKAGE}`, those about images from `{PACKAGE}.vl`, errors from
`{PACKAGE}.errors`. `{PACKAGE}.messages` has the configs and `Response` a second time, where
LMDeploy keeps them, and `{PACKAGE}.vl.pipeline` is `pipeline`. Importing them loads no torch, but
for `Pipeline`; making a pipeline does.
"""


def _find_public(name: str) -> Definition:
    for module in MODULES:
        if name in Module(module).public:
            return Module(module).find(name)
    raise KeyError(name)


def _definition(item: Definition, module: str) -> Iterator[str]:
    yield f"## {_heading(item)}\n"
    if module:
        yield f"```python\nfrom {module} import {item.name}\n```\n"
    if item.signature:
        yield f"```python\n{item.name}{item.signature}\n```\n"
    elif item.value:
        yield f"```python\n{item.name} = {item.value}\n```\n"
    elif any(method.name == "__init__" for method in item.methods):
        (made,) = (method for method in item.methods if method.name == "__init__")
        yield f"```python\nclass {item.name}{made.signature}\n```\n"
    yield _markdown(item.docstring)
    for method in item.methods:
        if method.name == "__init__":
            yield _markdown(method.docstring)
    yield from _fields(item.fields)
    properties = [method for method in item.methods if method.is_property]
    if properties:
        yield "| property | | |\n|---|---|---|"
        for method in properties:
            kind = method.signature.partition("-> ")[2]
            yield f"| `{method.name}` | {_code(kind)} | {_cell(method.docstring)} |"
        yield ""
    for method in item.methods:
        if not method.is_property and method.name != "__init__":
            yield from _method(item.name, method)


def _heading(item: Definition) -> str:
    if item.value:
        return item.name
    return f"{item.name}()" if item.signature else f"class {item.name}"


def _anchor(item: Definition) -> str:
    """Of its heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", _heading(item).lower()).replace(" ", "-")


def _method(owner: str, method: Function) -> Iterator[str]:
    # As a caller's variable is called: pipe, config, session.
    variable = {"Pipeline": "pipe"}.get(owner) or re.findall("[A-Z][a-z]+", owner)[-1].lower()
    shown = owner if method.is_classmethod else variable
    call = shown if method.name == "__call__" else f"{shown}.{method.name}"
    yield f"### {call}()\n"
    yield f"```python\n{call}{method.signature}\n```\n"
    yield _markdown(method.docstring)


def _fields(fields: tuple[Field, ...]) -> Iterator[str]:
    """A table; those that are explained together have one of their own."""
    group = ""
    for number, item in enumerate(fields):
        if number == 0 or item.group != group:
            group = item.group
            if number:
                yield ""
            if group:
                yield f"{group}\n"
            yield "| field | type | default | |\n|---|---|---|---|"
        default = "" if item.default is None else _code(item.default)
        yield f"| `{item.name}` | {_code(item.kind)} | {default} | {_cell(item.meaning)} |"
    if fields:
        yield ""


def _errors() -> list[Definition]:
    module = Module(ERRORS)
    return [module.find(name) for name in module.public]


def _errors_page() -> str:
    """One row an error, with what it inherits."""
    tree = Module(ERRORS).docstring
    items = {item.name: item for item in _errors()}

    def value(item: Definition, name: str) -> str:
        for own in item.fields:
            if own.name == name:
                return str(own.default).strip("'\"")
        base = items.get(item.bases[0])
        return value(base, name) if base else ""

    lines = [_WRITTEN, "# Errors\n", f"`from {ERRORS} import ...`\n"]
    lines.append(f"```text\n{tree.partition('VlmflowError')[1]}{_drawn(tree)}\n```\n")
    plain = [item for item in items.values() if not value(item, "stage")]
    lines += ["| not of one request | |", "|---|---|"]
    lines += [f"| `{item.name}` | {_cell(item.docstring)} |" for item in plain]
    base = items["RequestError"]
    lines += ["\n## RequestError\n", _markdown(base.docstring)]
    names = [own.name for own in base.fields]
    lines += [
        f"| | {' | '.join(f'`{name}`' for name in names)} | |",
        "|---" * (len(names) + 2) + "|",
    ]
    for item in items.values():
        if item not in plain:
            values = " | ".join(f"`{value(item, name)}`" for name in names)
            lines.append(f"| `{item.name}` | {values} | {_cell(_first(item))} |")
    return "\n".join([*lines, ""])


def _drawn(tree: str) -> str:
    """The tree itself, between the sentences around it."""
    return tree.partition("VlmflowError")[2].split("\n\n")[0]


def _first(item: Definition) -> str:
    return item.docstring.split("\n\n")[0].replace("\n", " ")


_ROW = re.compile(r"(\w+(?:, \w+)*)  +(\S.*)")


def _markdown(docstring: str) -> str:
    """A docstring as Markdown: what stands in two columns becomes a table, indented lines code."""
    blocks: list[str] = []
    for block in docstring.split("\n\n"):
        lines = block.splitlines()
        if all(line.startswith("    ") for line in lines):
            blocks.append("```python\n" + "\n".join(line[4:] for line in lines) + "\n```\n")
            continue
        rows: list[list[str]] = []
        texts: list[str] = []
        for line in lines:
            row = _ROW.fullmatch(line)
            if row and not texts:
                rows.append([row[1], row[2]])
            elif rows and line.startswith("  ") and not texts:
                rows[-1][1] += f" {line.strip()}"
            else:
                texts.append(line)
        if rows:
            blocks.append("| | |\n|---|---|")
            blocks += [f"| `{name}` | {_cell(text)} |" for name, text in rows]
            blocks.append("")
        if texts:
            blocks.append("\n".join(_escape(text) for text in texts) + "\n")
    return "\n".join(blocks)


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _cell(text: str) -> str:
    return _escape(" ".join(text.split())).replace("|", "\\|")


def _escape(text: str) -> str:
    """Angle brackets and stars outside of code are no markup here."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([<*])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    is_check = parser.parse_args().check
    pages = render_all()
    stale = [name for name, text in pages.items() if _read(FOLDER / name) != text]
    stale += [path.name for path in FOLDER.glob("*.md") if path.name not in pages]
    if is_check:
        for name in stale:
            print(f"docs/api/{name} is not what the sources say; run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.md"):
        path.unlink()
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(pages)} pages below docs/api, {len(stale)} of them changed")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
