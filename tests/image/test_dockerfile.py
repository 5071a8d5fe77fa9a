"""What the build is sent and what it is told, without building."""

import fnmatch
import re
from pathlib import Path

from tests.layout.test_layout import setup_cfg
from tools.lock import IMAGES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
STAGES = re.split(r"(?m)^FROM ", TEXT)


def instructions(name: str) -> list[str]:
    joined = TEXT.replace("\\\n", " ")
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_base_images_are_arguments():
    bases = [line.split()[0] for line in instructions("FROM")]
    assert bases == ["${BUILDER_IMAGE}", "dependencies", "${BASE_IMAGE}"]


def test_each_variant_has_a_lock():
    assert {f"image-{variant}" for variant in ("cpu", "cuda")} == set(IMAGES)
    assert "constraints/image-${VARIANT}.txt" in TEXT


def test_what_pip_is_told_stays_in_the_first_stage():
    assert "PIP_INDEX_URL" in STAGES[1]
    assert not [stage for stage in STAGES[2:] if "PIP_" in stage]


def test_it_is_run_by_exec_by_a_user_with_a_number():
    assert instructions("ENTRYPOINT") == ['["vlmflow"]']
    assert instructions("USER") == ["10001:0"]
    assert not instructions("HEALTHCHECK")


def test_every_folder_that_is_written_lies_in_the_volume_or_tmp():
    (volume,) = instructions("VOLUME")
    (last,) = [line for line in instructions("ENV") if "TRITON_CACHE_DIR" in line]
    folders = dict(pair.split("=") for pair in last.split())
    wanted = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "MPLCONFIGDIR")
    for name in wanted:
        assert folders[name].startswith(volume), name
    assert folders["TMPDIR"] == "/tmp"


def test_what_is_copied_is_sent_and_nothing_else():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    copied = [
        source.replace("${VARIANT}", "cpu")
        for line in instructions("COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    ]
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source, pattern) for pattern in sent), source
    for pattern in sent:
        assert any(fnmatch.fnmatch(source, pattern) for source in copied), pattern


def test_the_metadata_that_the_wheel_needs_is_copied():
    metadata = setup_cfg()["metadata"]
    for name in (metadata["license_files"], metadata["long_description"].split()[-1]):
        assert name in " ".join(instructions("COPY"))
