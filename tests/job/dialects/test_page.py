"""What docs/manifests.md shows is so."""

import re
from pathlib import Path

import pytest

from tests.job.dialects.manifests import NEEDS_PROMPT, PROMPT, reader
from vlmflow.job.dialects import DIALECTS
from vlmflow.job.dialects.parquet_output import results_schema
from vlmflow.job.dialects.prefix import SUFFIXES
from vlmflow.job.record import Record

PAGE = (Path(__file__).parents[3] / "docs" / "manifests.md").read_text()
BLOCKS = re.findall(r"^```(\w+) ?(.*?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TAKEN = [(kind, tag or kind, text) for kind, tag, text in BLOCKS if "refused" not in tag]
REFUSED = [
    (tag.split()[0], line)
    for _, tag, text in BLOCKS
    if "refused" in tag
    for line in text.splitlines()
]


@pytest.mark.parametrize(("kind", "dialect", "text"), TAKEN, ids=[t[1] for t in TAKEN])
def test_example_is_of_the_dialect_it_shows(
    kind: str, dialect: str, text: str, tmp_path: Path
) -> None:
    prompt = PROMPT if dialect in NEEDS_PROMPT else None
    manifest = reader(tmp_path, text.encode(), prompt=prompt)
    assert manifest.dialect == dialect
    items = list(manifest.items())
    assert [item for item in items if not isinstance(item, Record)] == []
    assert len(items) == 2


@pytest.mark.parametrize(("dialect", "line"), REFUSED)
def test_example_of_what_is_refused_is_refused(dialect: str, line: str, tmp_path: Path) -> None:
    [item] = reader(tmp_path, line.encode(), dialect).items()
    assert not isinstance(item, Record)


def test_page_has_every_dialect_every_suffix_and_every_column() -> None:
    shown = {dialect for _, dialect, _ in TAKEN}
    assert shown == set(DIALECTS) - {"parquet", "prefix"}
    for name in (*DIALECTS, *SUFFIXES, *results_schema().names):
        assert f"`{name}`" in PAGE, name
