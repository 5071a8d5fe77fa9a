"""Images stand where their user wrote IMAGE_TOKEN, else where the family of models wants them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow_engine.errors import ImageCountError
from vlmflow_engine.inputs.placement import ImagePlacement, PlacementRule, place_images
from vlmflow_engine.inputs.prompts import IMAGE_TOKEN, ImagePart, Message, TextPart

A, B, C = (ImagePart(name) for name in "ABC")

LLAVA = ImagePlacement("<image>")
INTERNVL = ImagePlacement("<CONTEXT>", PlacementRule.ITEM_ORDER, before="<img>", after="</img>")
QWEN = ImagePlacement("<pad>", PlacementRule.ITEM_ORDER, before="<start>", after="<end>", end="")


def _user(*parts: str | ImagePart, role: str = "user") -> Message:
    return Message(role, tuple(TextPart(p) if isinstance(p, str) else p for p in parts))


@pytest.mark.parametrize(
    ("placement", "text"),
    [
        (LLAVA, "<image>\n<image>\nCompare\nthese."),
        (INTERNVL, "Compare<img><CONTEXT></img>\n<img><CONTEXT></img>\nthese."),
        (QWEN, "Compare<start><pad><end><start><pad><end>these."),
    ],
)
def test_images_stand_where_the_family_wants_them(placement: ImagePlacement, text: str) -> None:
    assert placement.write(_user("Compare", A, B, "these.")) == text


@pytest.mark.parametrize(
    ("placement", "text"),
    [
        (LLAVA, "Is <image> like <image>?"),
        (INTERNVL, "Is <img><CONTEXT></img> like <img><CONTEXT></img>?"),
        (QWEN, "Is <start><pad><end> like <start><pad><end>?"),
    ],
)
def test_places_that_a_user_wrote_win(placement: ImagePlacement, text: str) -> None:
    message = _user(A, B, f"Is {IMAGE_TOKEN} like {IMAGE_TOKEN}?")
    assert placement.write(place_images([message])[0]) == text


@pytest.mark.parametrize("placement", [LLAVA, INTERNVL, QWEN])
def test_message_without_images_is_its_text(placement: ImagePlacement) -> None:
    assert placement.write(_user("What?")) == "What?"
    assert placement.write(_user()) == ""


def test_images_are_taken_in_the_order_of_the_conversation() -> None:
    messages = [
        _user(A, f"One {IMAGE_TOKEN}"),
        _user("Yes.", role="assistant"),
        _user("Other", C),
        _user(f"{IMAGE_TOKEN}", "and more", B),
    ]
    assert [message.parts for message in place_images(messages)] == [
        (TextPart("One "), A, TextPart("")),
        (TextPart("Yes."),),
        (TextPart("Other"), C),
        (TextPart(""), B, TextPart("\nand more")),
    ]


@pytest.mark.parametrize(
    ("parts", "counts"),
    [
        ((IMAGE_TOKEN,), "1 vs 0"),
        ((A, IMAGE_TOKEN * 2), "2 vs 1"),
        ((A, B, f"{IMAGE_TOKEN} and", f"{IMAGE_TOKEN * 2}"), "3 vs 2"),
        ((A, B, IMAGE_TOKEN), "1 vs 2"),
    ],
)
def test_places_and_images_of_different_numbers_are_refused(
    parts: tuple[str | ImagePart, ...], counts: str
) -> None:
    sentence = f"the number of <IMAGE_TOKEN> is not equal to input images, {counts}"
    with pytest.raises(ImageCountError) as caught:
        place_images([_user(*parts)])
    assert str(caught.value) == sentence
    assert caught.value.code == "preprocess_failed"


def test_images_are_counted_over_the_whole_conversation() -> None:
    with pytest.raises(ImageCountError, match="2 vs 1"):
        place_images([_user("One", A), _user(f"Again {IMAGE_TOKEN}")])


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
def test_token_in_a_message_of_someone_else_is_text(role: str) -> None:
    messages = [_user(A, "What?"), _user(f"It is {IMAGE_TOKEN}.", role=role), _user("Sure?")]
    assert place_images(messages) == messages


def test_image_has_no_other_place_where_only_marks_count() -> None:
    with pytest.raises(ImageCountError, match="0 vs 1"):
        place_images([_user(A, "What?")], only_marked=True)
    (placed,) = place_images([_user(A, f"What {IMAGE_TOKEN}?")], only_marked=True)
    assert placed.parts == (TextPart("What "), A, TextPart("?"))


@given(texts=st.lists(st.text("<IMAGE_TOKEN>\n"), min_size=1), num_marks=st.integers(0, 3))
def test_text_without_its_marks_is_what_it_was(texts: list[str], num_marks: int) -> None:
    whole = "\n".join(texts)
    marked = IMAGE_TOKEN.join([whole, *["."] * num_marks])
    images = [ImagePart(index) for index in range(marked.count(IMAGE_TOKEN))]
    (placed,) = place_images([_user(*images, marked)])
    assert [part for part in placed.parts if isinstance(part, ImagePart)] == images
    assert ImagePlacement(IMAGE_TOKEN).write(placed) == marked
