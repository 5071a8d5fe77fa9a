"""The same few results are shown whatever the order of work, each with a small picture."""

import io
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmflow.job.media import MediaFetcher
from vlmflow.job.record import Record
from vlmflow.job.samples import (
    MAX_SAMPLES,
    THUMBNAIL_SIDE,
    Sample,
    SamplePicker,
    make_samples,
    make_thumbnail,
    prompt_text,
)
from vlmflow.job.store import StoreOpener


def picture(width: int = 400, height: int = 200, mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind)
    return file.getvalue()


def opened(data: bytes | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(data))


def picked(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    picker = SamplePicker()
    for line in lines:
        picker.add(line)
    return list(picker.picked())


@pytest.fixture
def fetcher(tmp_path: Path) -> MediaFetcher:
    return MediaFetcher(StoreOpener(), f"{tmp_path}/m.jsonl", max_image_bytes=1 << 20)


def result_of(fetcher: MediaFetcher, *uris: str) -> dict[str, Any]:
    """The line of a record that was answered with these images."""
    record = Record(0, 1, "r1", "x", uris, {}, {})
    images = fetcher.fetch(record)
    assert isinstance(images, list)
    seen = [{"uri": image.uri, "sha256": image.sha256} for image in images]
    return {"id": "r1", "ordinal": 0, "images": seen}


@settings(max_examples=20)
@given(order=st.permutations(range(3 * MAX_SAMPLES)))
def test_samples_are_the_same_in_any_order_of_work(order: list[int]) -> None:
    lines = [{"id": f"r{number}", "ordinal": number} for number in range(3 * MAX_SAMPLES)]
    expected = picked(lines)
    assert len(expected) == MAX_SAMPLES
    assert [line["ordinal"] for line in expected] == sorted(line["ordinal"] for line in expected)
    assert picked([lines[number] for number in order]) == expected


def test_samples_come_from_all_over_the_manifest() -> None:
    lines = [{"id": f"r{number}", "ordinal": number} for number in range(10 * MAX_SAMPLES)]
    ordinals = [line["ordinal"] for line in picked(lines)]
    assert ordinals[0] < MAX_SAMPLES and ordinals[-1] > 9 * MAX_SAMPLES


def test_failures_are_no_samples() -> None:
    lines = [{"id": "a", "ordinal": 0, "error": {}}, {"id": "b", "ordinal": 1}]
    assert picked(lines) == lines[1:]


def test_sample_has_a_small_picture_of_its_first_image(
    fetcher: MediaFetcher, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture(400, 200))
    (tmp_path / "b.png").write_bytes(picture(10, 10))
    sample = Sample.of(result_of(fetcher, "a.png", "b.png"), None, fetcher)
    thumbnail = opened(sample.thumbnail)
    assert (thumbnail.format, thumbnail.size) == ("PNG", (THUMBNAIL_SIDE, THUMBNAIL_SIDE // 2))


@pytest.mark.parametrize("change", ["deleted", "changed", "broken"])
def test_sample_whose_image_is_not_what_the_model_saw_has_no_picture(
    change: str, fetcher: MediaFetcher, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"no image" if change == "broken" else picture())
    line = result_of(fetcher, "a.png")
    if change == "deleted":
        path.unlink()
    elif change == "changed":
        path.write_bytes(picture(20, 20))
    assert Sample.of(line, None, fetcher) == Sample(line, None, None)


@pytest.mark.parametrize("uris", [(), ("data:image/png;base64,AAAA",)])
def test_sample_without_an_image_that_can_be_had_again_has_no_picture(
    uris: tuple[str, ...], fetcher: MediaFetcher
) -> None:
    line = result_of(fetcher, *uris)
    assert Sample.of(line, None, fetcher) == Sample(line, None, None)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGBA"), ("PNG", "P"), ("PNG", "L"), ("PNG", "1"), ("JPEG", "CMYK"), ("GIF", "P")],
)
def test_picture_of_any_mode_becomes_a_thumbnail(kind: str, mode: str) -> None:
    assert opened(make_thumbnail(picture(300, 3, mode, kind))).size == (160, 2)


def test_photo_becomes_a_jpeg_that_is_smaller_than_its_png() -> None:
    noise = Image.effect_noise((400, 400), 80).convert("RGB")
    file = io.BytesIO()
    noise.save(file, "PNG")
    thumbnail = make_thumbnail(file.getvalue())
    assert opened(thumbnail).format == "JPEG"
    assert thumbnail is not None and len(thumbnail) < 20_000


def test_sample_of_a_record_has_its_prompt_and_the_picture_of_its_data_url(
    fetcher: MediaFetcher,
) -> None:
    uri = "data:image/png;base64," + b64encode(picture()).decode()
    record = Record(0, 1, "r1", [{"role": "user", "content": "what?"}], (uri,), {}, {})
    sample = Sample.of(result_of(fetcher, uri), record, fetcher)
    assert sample.prompt == "what?"
    assert opened(sample.thumbnail).size == (160, 80)


def test_samples_come_in_the_order_of_their_lines(fetcher: MediaFetcher, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(picture(number + 1, 1))
    lines = [result_of(fetcher, f"{number}.png") for number in range(20)]
    samples = make_samples(lines, {}, fetcher)
    assert [opened(sample.thumbnail).width for sample in samples] == list(range(1, 21))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ([{"role": "user", "content": "a"}], "a"),
        (
            [
                {"role": "system", "content": "be brief"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "see"},
                        {"type": "image", "image": {"$image": 0}},
                        {"type": "text", "text": "what?"},
                    ],
                },
            ],
            "system: be brief\nuser: see what?",
        ),
    ],
)
def test_prompt_is_one_text(prompt: Any, text: str) -> None:
    assert prompt_text(prompt) == text


def test_small_picture_is_not_made_larger() -> None:
    assert opened(make_thumbnail(picture(7, 5))).size == (7, 5)
