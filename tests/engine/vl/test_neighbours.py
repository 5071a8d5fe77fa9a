"""A bad image costs its own prompt: the neighbours' texts are those of a run without it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.inputs.pictures import encode, noise, png_that_claims
from vlmflow_engine import GenerationConfig, Pipeline, PytorchEngineConfig

CONFIG = PytorchEngineConfig(dtype="float32", device_type="cpu", max_batch_size=4)
SHORT = GenerationConfig(max_new_tokens=8, ignore_eos=True)
GOOD = [("what is this", encode(noise(50, 40, seed=seed), "PNG")) for seed in range(6)]
BAD = {
    "truncated": GOOD[0][1][:-200],
    "bomb": png_that_claims(50_000, 50_000),
    "web page": b"<html>",
    "missing": "/nowhere/a.png",
    "loopback": "http://127.0.0.1:9/a.png?sig=SECRET",
    "metadata": "http://169.254.169.254/latest/meta-data?SECRET",
    "data URL": "data:image/png;base64,AAAA",
    "no source": None,
}


@pytest.fixture(scope="module")
def pipe(tiny_llava: Path) -> Iterator[Pipeline]:
    with Pipeline(str(tiny_llava), backend_config=CONFIG) as pipe:
        yield pipe


def test_neighbours_of_bad_images_answer_as_without_them(pipe: Pipeline) -> None:
    alone = pipe(GOOD, SHORT)
    assert len({response.text for response in alone}) > 1  # the images do matter
    mixed = list(GOOD)
    for position, source in enumerate(BAD.values()):
        mixed.insert(position * 2 % len(mixed) + 1, ("what is this", source))
    answers = pipe(mixed, SHORT)
    kept = [answer for prompt, answer in zip(mixed, answers, strict=True) if prompt in GOOD]
    assert [answer.text for answer in kept] == [answer.text for answer in alone]
    assert [answer.token_ids for answer in kept] == [answer.token_ids for answer in alone]


@pytest.mark.parametrize("name", BAD)
def test_bad_image_in_the_middle_is_its_own_error(pipe: Pipeline, name: str) -> None:
    first, last = pipe([GOOD[1], GOOD[2]], SHORT)
    before, bad, after = pipe([GOOD[1], ("what is this", BAD[name]), GOOD[2]], SHORT)
    assert (before.text, after.text) == (first.text, last.text)
    assert (bad.finish_reason, bad.text, bad.token_ids, bad.index) == ("error", "", [], 1)
    assert bad.error_code == "preprocess_failed"
    assert bad.error_message and "SECRET" not in bad.error_message
