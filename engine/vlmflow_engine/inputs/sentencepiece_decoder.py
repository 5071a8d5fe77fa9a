"""Pieces back to text, as SentencePiece reads them."""

from collections.abc import Iterable, Sequence

from vlmflow_engine.inputs.added_tokens import AddedToken
from vlmflow_engine.inputs.sentencepiece_model import BLANK, PieceType, SentencePieceModel


class PieceDecoder:
    """Decodes token ids.

    The blank before a text is dropped, and each byte that is part of no character becomes U+FFFD.
    (tokenizers' decoder replaces whole characters beside such a byte too, so that what was shown of
    an answer would change under it.)

    What a longer list decodes to begins with what the shorter one did, bytes at the end apart.
    """

    def __init__(
        self, model: SentencePieceModel, added: Sequence[AddedToken], *, is_group_apart: bool
    ) -> None:
        """
        added           all tokens that a text is split at, those of the model too
        is_group_apart  what stands between two added tokens is a text by itself, with a blank
                        between it and the token that follows
        """
        self._texts: dict[int, str | int] = {
            index: int(piece.text[3:-1], 16)
            if piece.type is PieceType.BYTE
            else piece.text.replace(BLANK, " ")
            for index, piece in enumerate(model.pieces)
        }
        self._added = {token.id: token.content for token in added}
        self._special_ids = {token.id for token in added if token.special}
        self._drops_blank = model.add_dummy_prefix or model.remove_extra_whitespaces
        self._drops_all_blanks = model.remove_extra_whitespaces
        self._is_group_apart = is_group_apart

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        """Return the text of token ids; one that is not known has none."""
        shown: list[str] = []
        group: list[int] = []
        for token_id in token_ids:
            token = self._added.get(token_id)
            if token is None:
                group.append(token_id)
            elif not (skip_special_tokens and token_id in self._special_ids):
                if group:
                    shown.append(self._decode_group(group, is_first=not shown))
                    if self._is_group_apart:
                        shown.append(" ")
                    group = []
                shown.append(token)
        if group:
            shown.append(self._decode_group(group, is_first=not shown))
        return "".join(shown)

    def _decode_group(self, token_ids: list[int], *, is_first: bool) -> str:
        is_start = self._drops_blank and (is_first or self._is_group_apart)
        parts: list[str] = []
        pending = bytearray()
        for token_id in token_ids:
            text = self._texts.get(token_id, "")
            if isinstance(text, int):
                pending.append(text)
                continue
            if pending:
                parts.append(_characters(pending))
                pending.clear()
                is_start = False
            if is_start and text.startswith(" "):
                text = text[1:]
                is_start = self._drops_all_blanks and not text
            elif text:
                is_start = False
            parts.append(text)
        parts.append(_characters(pending))
        return "".join(parts)


def _characters(raw: bytearray) -> str:
    """Decode UTF-8; a U+FFFD for every single byte that is part of no character."""
    text = raw.decode("utf-8", "surrogateescape")
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
