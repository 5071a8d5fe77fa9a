"""The results of a job as an asset."""

from pathlib import Path

import pytest
from airflow.sdk import Asset

from vlmflow.airflow.assets import results_asset, results_uri


@pytest.mark.parametrize("output", ["s3://data/results", "s3://data/results/"])
def test_the_producers_outlet_and_the_consumers_schedule_are_one(output):
    assert results_asset(output, "shapes") == Asset("s3://data/results/shapes/results")


def test_a_folder_is_a_file_uri():
    assert results_uri("/data/my results/shapes") == "file:///data/my%20results/shapes/results"
    assert results_uri("out/shapes") == f"file://{Path('out/shapes').absolute()}/results"
