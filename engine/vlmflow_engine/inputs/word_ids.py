"""Words of a request as token ids: `bad_words`, and those of `stop_words` that are tokens."""

from collections.abc import Iterable

from vlmflow_engine.inputs.tokenizer import PromptTokenizer

# Ends any word before it, and keeps a blank behind it.
_NEW_LINE = "\n"


def banned_sequences(
    tokenizer: PromptTokenizer, words: Iterable[str]
) -> tuple[tuple[int, ...], ...]:
    """Return the token ids that may not follow one another if no word is to be written.

    They are each word's own encodings, at the beginning and inside a text, with and without a
    leading blank, and every single token whose text contains the word: "he" bans "the" too. A word
    can still be put together from pieces that the tokenizer itself would not choose.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        found |= dict.fromkeys((token_id,) for token_id in tokenizer.ids_containing(word))
        for text in (word, " " + word):
            for ids in (tokenizer.encode_text(text), _encode_inside(tokenizer, text)):
                # One of its tokens may be banned by itself already.
                if ids and not any((token_id,) in found for token_id in ids):
                    found[tuple(ids)] = None
    return tuple(found)


def special_stop_ids(
    tokenizer: PromptTokenizer, words: Iterable[str]
) -> tuple[list[int], list[str]]:
    """Split stop words into the ids of those that are special tokens, and all others.

    Special tokens are left out of an answer's text, so that no search of the text finds them.
    """
    ids: list[int] = []
    others: list[str] = []
    special_tokens = set(tokenizer.special_tokens)
    for word in words:
        token_id = tokenizer.token_id(word) if word in special_tokens else None
        if token_id is None:
            others.append(word)
        else:
            ids.append(token_id)
    return ids, others


def _encode_inside(tokenizer: PromptTokenizer, text: str) -> list[int]:
    """Encode text as it stands on a new line; nothing if the line's end is no token by itself."""
    before = tokenizer.encode_text(_NEW_LINE)
    ids = tokenizer.encode_text(_NEW_LINE + text)
    return ids[len(before) :] if ids[: len(before)] == before else []
