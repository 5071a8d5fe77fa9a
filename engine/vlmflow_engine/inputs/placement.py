"""Where the images of a message stand in its text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from vlmflow_engine.errors import ImageCountError
from vlmflow_engine.inputs.prompts import IMAGE_TOKEN, ImagePart, Message, TextPart


class PlacementRule(Enum):
    """Where a family of models was trained to find the images of a message."""

    PREFIX = "prefix"  # before the text, whatever the order of the parts: LLaVA
    ITEM_ORDER = (
        "item_order"  # where the parts have them, nothing between the texts: InternVL, Qwen
    )


@dataclass(frozen=True, slots=True)
class ImagePlacement:
    """How a family of models writes images into a text."""

    token: str  # the placeholder of one image
    rule: PlacementRule = PlacementRule.PREFIX
    before: str = ""  # each placeholder, as "<img>"
    after: str = ""
    end: str = "\n"  # behind an image, unless the caller placed it

    def write(self, message: Message) -> str:
        """Return a message's parts as one text."""
        image = f"{self.before}{self.token}{self.after}"
        if message.is_placed:
            return _join(message, image)
        if self.rule is PlacementRule.ITEM_ORDER:
            return _join(message, image + self.end)
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        return (image + self.end) * (len(message.parts) - len(texts)) + "\n".join(texts)


def place_images(messages: Sequence[Message], *, only_marked: bool = False) -> list[Message]:
    """Put images where their users wrote IMAGE_TOKEN; other messages stay as they are.

    A text with IMAGE_TOKEN takes the next images of the conversation, one for each; its message's
    own image parts add nothing to it. With `only_marked` there is no other place for an image.
    Raises ImageCountError.
    """
    images = [image for message in messages for image in _images(message.parts)]
    marks = [_texts(message).count(IMAGE_TOKEN) for message in messages]
    places = [
        mark or (0 if only_marked else len(_images(message.parts)))
        for mark, message in zip(marks, messages, strict=True)
    ]
    if sum(places) != len(images):
        raise ImageCountError(
            f"the number of {IMAGE_TOKEN} is not equal to input images, "
            f"{sum(places)} vs {len(images)}"
        )
    following = iter(images)
    placed: list[Message] = []
    for message, mark in zip(messages, marks, strict=True):
        if mark:
            first, *others = _texts(message).split(IMAGE_TOKEN)
            parts: list[TextPart | ImagePart] = [TextPart(first)]
            for text in others:
                parts += [next(following), TextPart(text)]
            placed.append(replace(message, parts=tuple(parts), is_placed=True))
        else:
            own = [next(following) if isinstance(p, ImagePart) else p for p in message.parts]
            placed.append(replace(message, parts=tuple(own)))
    return placed


def _texts(message: Message) -> str:
    """The texts in which a caller may place images: only users', an answer is no such place."""
    if message.role != "user":
        return ""
    return "\n".join(part.text for part in message.parts if isinstance(part, TextPart))


def _images(parts: Iterable[TextPart | ImagePart]) -> list[ImagePart]:
    return [part for part in parts if isinstance(part, ImagePart)]


def _join(message: Message, image: str) -> str:
    return "".join(part.text if isinstance(part, TextPart) else image for part in message.parts)
