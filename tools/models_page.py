"""Write docs/models.md from the registry of model families.

make docs                            write the pages
python -m tools.models_page --check  exit with 1 if the committed page is not up to date
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from vlmflow_engine.models.family import Family
from vlmflow_engine.models.registry import FAMILIES, GENERIC

PAGE = Path(__file__).parents[1] / "docs" / "models.md"

_OPENING = """\
<!-- Written by `make docs` from the registry; changes belong into models/families/. -->
# Which models run

A checkpoint is known by `architectures` in its config.json, never by its name. Each family is
loaded from its Hugging Face form, and from its authors' where that is another one; a checkpoint's
own code is never run. What no family knows runs through transformers' own code, with our paged
attention; the log says so. [Where a model comes from](loading.md) tells about folders, the hub and
S3, and what is checked.

All of it was proven with small random checkpoints of exactly these forms, not with the released
weights. "Token by token" means greedy answers in float32, whatever the batch, the chunks of a
prompt, the preemptions and the caches.
"""

_CLOSING = """\
## Not yet

Quantised checkpoints (AWQ, GPTQ, FP8, bitsandbytes, compressed-tensors), video, tensor parallelism.
Each is refused in a sentence.

## Adding a family

One file in `engine/vlmflow_engine/models/families/` with a subclass of `Family`, a line in
`models/registry.py`, one test file in `tests/engine/models/families/`, and `make docs`. What a
vision tower, a decoder or an image processor has in common with another one is a file of its own
(`models/clip.py`, `models/decoder.py`, `inputs/image_processors/`).
"""


def render() -> str:
    """The page."""
    families = (*FAMILIES, GENERIC)
    return "\n".join([_OPENING, *_table(families), "", *_details(families), _CLOSING])


def _table(families: Iterable[Family]) -> list[str]:
    rows = ["| family | form | checkpoints |", "|---|---|---|"]
    rows += [f"| {family.name} | {family.form} | {family.checkpoints} |" for family in families]
    return rows


def _details(families: Iterable[Family]) -> list[str]:
    lines: list[str] = []
    for family in families:
        lines += [f"## {family.name}, {family.form} form", ""]
        if family.architectures:
            lines += [f"- architectures: {', '.join(f'`{a}`' for a in family.architectures)}"]
        lines += [f"- tested: {family.tested}"]
        lines += [f"- limits: {family.limits}"] if family.limits else []
        lines += [""]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    text = render()
    if options.check:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
            return 0
        print(f"{PAGE} is not what the registry says; run make docs", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
