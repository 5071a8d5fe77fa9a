"""The table at the end of a run names the page, and the cost where a price was given."""

import io

import pytest

from tests.job.jobs import FAKE_ENGINE, records, run_job, write_manifest
from vlmflow.cli.summary import print_summary
from vlmflow.job.engine_process import COMMAND_VARIABLE


@pytest.mark.parametrize("price", [None, 36000.0])
def test_summary_names_the_page_and_the_cost(tmp_path, monkeypatch, price):
    monkeypatch.setenv(COMMAND_VARIABLE, FAKE_ENGINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = write_manifest(tmp_path / "m.jsonl", records(3))
    report = run_job(tmp_path, manifest, tmp_path / "out", price_per_hour=price)
    out = io.StringIO()
    print_summary(report, out)
    rows = dict(line.strip().split("  ", 1) for line in out.getvalue().splitlines())
    assert rows["to read"].strip() == f"{tmp_path}/out/m/report.html"
    assert ("cost per 1,000" in rows) == (price is not None)
