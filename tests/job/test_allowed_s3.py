"""What a manifest may name on S3 is decided by whole path segments, and nothing leads out of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow.job.allowed_s3 import AllowedS3
from vlmflow.job.errors import SpecError

ON_S3 = "s3://own/in/m.jsonl"
IN_FOLDER = "/in/m.jsonl"

SEGMENT = st.text("ab.-", min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("listed", "manifest", "uri", "is_allowed"),
    [
        ([], ON_S3, "s3://own/a.png", True),
        ([], ON_S3, "S3://own/in/a.png", True),
        ([], ON_S3, "s3://own-other/a.png", False),
        ([], ON_S3, "s3://other/a.png", False),
        ([], IN_FOLDER, "s3://own/a.png", False),
        (["s3://other"], ON_S3, "s3://own/a.png", True),
        (["s3://other/"], ON_S3, "s3://other/x/a.png", True),
        (["s3://other/in"], ON_S3, "s3://other/in/a.png", True),
        (["s3://other/in/"], ON_S3, "s3://other/in/a.png", True),
        (["s3://other/in"], ON_S3, "s3://other/in", True),
        (["s3://other/in"], ON_S3, "s3://other/inner/a.png", False),
        (["s3://other/in"], ON_S3, "s3://other/x/in/a.png", False),
        (["s3://other/a", "s3://other/b"], ON_S3, "s3://other/b/a.png", True),
        # The list may be narrower than the manifest's own bucket.
        (["s3://own/images"], ON_S3, "s3://own/images/a.png", True),
        (["s3://own/images"], ON_S3, "s3://own/private/a.png", False),
        (["s3://other"], IN_FOLDER, "s3://other/a.png", True),
        # urllib3 would resolve these on the way to the server.
        (["s3://other/in"], ON_S3, "s3://other/in/../private/a.png", False),
        ([], ON_S3, "s3://own/../other/a.png", False),
        ([], ON_S3, "s3://own/./a.png", False),
        ([], ON_S3, "s3://own/..a/b..png", True),
    ],
)
def test_place_is_allowed_or_not(
    listed: list[str], manifest: str, uri: str, is_allowed: bool
) -> None:
    refusal = AllowedS3(listed, manifest).refusal(uri)
    assert (refusal is None) == is_allowed, refusal


def test_refusal_names_the_option_that_would_allow_it() -> None:
    refusal = AllowedS3([], ON_S3).refusal("s3://other/in/a.png")
    assert refusal is not None
    assert "s3://other/in/a.png" in refusal and "--allow-s3 s3://other" in refusal


@given(place=st.lists(SEGMENT, max_size=3), key=st.lists(SEGMENT, min_size=1, max_size=4))
def test_what_is_allowed_lies_below_the_place_segment_by_segment(
    place: list[str], key: list[str]
) -> None:
    allowed = AllowedS3([f"s3://b/{'/'.join(place)}"], IN_FOLDER)
    is_allowed = allowed.refusal(f"s3://b/{'/'.join(key)}") is None
    leads_out = "." in key or ".." in key
    assert is_allowed == (key[: len(place)] == place and not leads_out)


@pytest.mark.parametrize("place", ["", "b/in", "/in", "http://b/in", "s3://", "s3:///in"])
def test_what_is_no_place_on_s3_is_refused(place: str) -> None:
    with pytest.raises(SpecError, match="s3://"):
        AllowedS3([place], ON_S3)
