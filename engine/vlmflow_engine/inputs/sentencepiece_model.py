"""A tokenizer.model as SentencePiece writes it: pieces, scores, and how text is normalised.

The file is one protobuf message. The few fields that count are read from its wire format, so that a
preprocessing worker needs neither sentencepiece nor protobuf.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from vlmflow_engine.errors import ModelError

BLANK = "▁"  # what a blank is inside pieces


class PieceType(IntEnum):
    """What a piece is; the numbers are the file's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # never found in text
    USER_DEFINED = 4  # always one piece, wherever a text spells it
    UNUSED = 5
    BYTE = 6  # "<0x41>", for what no other piece spells


class ModelType(IntEnum):
    """How a text is cut into pieces; the numbers are the file's."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class Piece(NamedTuple):  # made 92,553 times for InternLM2: a third of a dataclass's time
    text: str
    score: float  # of BPE: the higher, the earlier is it put together
    type: PieceType


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """What the file says. Defaults are those of the format."""

    pieces: tuple[Piece, ...]  # a piece's place is its id
    model_type: ModelType = ModelType.UNIGRAM
    byte_fallback: bool = False
    beginning: str = "<s>"  # the piece that begins a text, if it is there
    blank_is_suffix: bool = False  # a word's blank is at its end, and so is the dummy one
    charsmap: bytes = b""  # compiled rules of normalisation; empty: text stays as it is
    add_dummy_prefix: bool = True  # a blank before each text
    remove_extra_whitespaces: bool = True  # at both ends, and all but one inside
    escape_whitespaces: bool = True  # write BLANK for a blank

    @property
    def unknown_id(self) -> int:
        """The piece that stands for what no other spells."""
        return next(i for i, piece in enumerate(self.pieces) if piece.type is PieceType.UNKNOWN)

    @classmethod
    def from_file(cls, path: Path) -> "SentencePieceModel":
        """Read a tokenizer.model. Raises ModelError if it is none."""
        try:
            return _read_model(path.read_bytes())
        except (ValueError, OSError) as error:
            raise ModelError(
                f"{path}: cannot be read as a SentencePiece model: {error}; is it whole, and not a "
                "pointer to the file?"
            ) from error


# A field's number -> its values, in order: int of a varint, bytes of all else.
_Fields = dict[int, list[int | bytes]]


def _read_model(raw: bytes) -> SentencePieceModel:
    fields = _read_fields(raw)
    trainer = _read_fields(_bytes(fields, 2))
    normalizer = _read_fields(_bytes(fields, 3))
    pieces = tuple(_read_piece(value) for value in fields.get(1, []))
    if not pieces:
        raise ValueError("it holds no pieces")
    num_unknown = sum(piece.type is PieceType.UNKNOWN for piece in pieces)
    if num_unknown != 1:
        raise ValueError(f"{num_unknown} of its pieces stand for the unknown; it should be one")
    return SentencePieceModel(
        pieces=pieces,
        model_type=ModelType(_number(trainer, 3, ModelType.UNIGRAM)),
        byte_fallback=bool(_number(trainer, 35, 0)),
        beginning=_bytes(trainer, 46).decode("utf-8") or "<s>",
        blank_is_suffix=bool(_number(trainer, 24, 0)),
        charsmap=_bytes(normalizer, 2),
        add_dummy_prefix=bool(_number(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_number(normalizer, 4, 1)),
        escape_whitespaces=bool(_number(normalizer, 5, 1)),
    )


def _read_piece(raw: int | bytes) -> Piece:
    if isinstance(raw, int):
        raise ValueError("a piece is no message")
    fields = _read_fields(raw)
    score = _bytes(fields, 2)
    if len(score) not in (0, 4):
        raise ValueError("a piece's score is no float")
    return Piece(
        _bytes(fields, 1).decode("utf-8"),
        struct.unpack("<f", score)[0] if score else 0.0,
        PieceType(_number(fields, 3, PieceType.NORMAL)),
    )


def _bytes(fields: _Fields, number: int) -> bytes:
    value = fields.get(number, [b""])[-1]
    if isinstance(value, int):
        raise ValueError(f"field {number} is a number")
    return value


def _number(fields: _Fields, number: int, default: int) -> int:
    value = fields.get(number, [default])[-1]
    if isinstance(value, bytes):
        raise ValueError(f"field {number} is no number")
    value &= 0xFFFFFFFF  # an int32 below zero is written with 64 bits
    return value - (1 << 32) if value >> 31 else value


def _read_fields(raw: bytes) -> _Fields:
    fields: _Fields = {}
    for number, value in _walk(raw):
        fields.setdefault(number, []).append(value)
    return fields


def _walk(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number and value. Raises ValueError."""
    place, end = 0, len(raw)
    while place < end:
        key, place = _read_varint(raw, place)
        number, wire_type = key >> 3, key & 7
        if not number:
            raise ValueError("a field has the number 0")
        if wire_type == 0:
            value, place = _read_varint(raw, place)
            yield number, value
            continue
        if wire_type == 2:
            size, place = _read_varint(raw, place)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"a field has the wire type {wire_type}")
        if place + size > end:
            raise ValueError("it ends in the middle of a field")
        yield number, raw[place : place + size]
        place += size


def _read_varint(raw: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(raw):
            raise ValueError("it ends in the middle of a number")
        byte = raw[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number has more than ten bytes")
