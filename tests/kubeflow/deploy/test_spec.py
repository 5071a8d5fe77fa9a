"""The spec in the ConfigMap is the one contract that every face speaks."""

import io
import json
from contextlib import redirect_stdout

import pytest

from tests.kubeflow.deploy.rendered import OVERLAYS, spec_text, the
from tools.render_deploy import DEPLOY
from vlmflow.cli.main import main
from vlmflow.job.spec import JobSpec


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_config_map_holds_what_vlmflow_spec_prints(overlay):
    text = spec_text(overlay)
    again = "write it anew: vlmflow spec --spec deploy/base/spec.json"
    assert JobSpec.parse(json.loads(text)).canonical_json() + "\n" == text, again
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main(["spec", "--spec", str(DEPLOY / "base/spec.json")]) == 0
    assert printed.getvalue() == text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_changed_spec_is_another_config_map_and_not_a_change_below_a_running_job(overlay):
    config = the(overlay, "ConfigMap")
    assert config["immutable"] is True
    stem, _, digest = config["metadata"]["name"].rpartition("-")
    assert stem == "shapes-vlmflow-spec" and len(digest) == 10
