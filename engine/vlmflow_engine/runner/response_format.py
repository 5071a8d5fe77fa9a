"""What a response_format asks for, checked and written as a grammar of llguidance.

    {'type': 'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}   or the bare schema
    {'type': 'json_object'}
    {'type': 'regex_schema', 'regex_schema': '...'}

JSON keeps the order of the schema's properties, so schemas that differ in it alone are two
grammars. A regex must match the whole answer; \\d, \\w and \\s are those of ASCII. There is neither
look-around nor backreference.
"""

import json
from typing import Any

from vlmflow_engine.checks import is_text
from vlmflow_engine.errors import InvalidRequestError

MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 100  # dicts and lists in one another
MAX_REGEX_CHARS = 4096

# At each place where JSON has blanks: one line feed and an indentation. Models are trained on
# spaced JSON; without a bound a model may write blanks for ever.
_WHITESPACE = r"\n? {1,16}|\n"

# Without it the library allows only its own tokenizer's spelling of what is certain to come, and
# that tokenizer spells "<s>" in a text by the special token.
_HEADER = '%llguidance {"no_forcing": true}\n'


def write_grammar(response_format: dict[str, Any], *, strips_blank: bool = False) -> str:
    """Return the grammar in llguidance's Lark.

    strips_blank  whether the tokenizer's decoder takes a blank off the answer's beginning; then
                  the tokens may spell one more
    Raises InvalidRequestError if the form, a size or a value is not allowed. A schema or a regex
    that is wrong in itself is found when the grammar is compiled.
    """
    kind = response_format.get("type")
    if kind == "regex_schema":
        return _regex_grammar(response_format.get("regex_schema"), strips_blank)
    if kind == "json_object":
        return _json_grammar({"type": "object"}, strips_blank)
    if kind == "json_schema":
        return _json_grammar(_find_schema(response_format.get("json_schema")), strips_blank)
    raise InvalidRequestError(
        "response_format: type must be 'json_schema', 'json_object' or 'regex_schema', "
        f"got {kind!r}"
    )


def _find_schema(value: object) -> object:
    schema = value["schema"] if isinstance(value, dict) and "schema" in value else value
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(
            "response_format: json_schema must be {'name': ..., 'schema': {...}} or the schema "
            f"itself, got {_shorten(schema)}"
        )
    return schema


def _json_grammar(schema: object, strips_blank: bool) -> str:
    _check_schema(schema)
    # The library's own options would stand here; whatever a caller has put there is not meant.
    options = {"whitespace_pattern": _WHITESPACE}
    whole = {**schema, "x-guidance": options} if isinstance(schema, dict) else schema
    try:
        text = json.dumps(whole, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"response_format: the schema is not JSON: {error}") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise _too_large()
    start = '" "? value' if strips_blank else "value"
    return f"{_HEADER}start: {start}\nvalue: %json {text}\n"


def _check_schema(schema: object) -> None:
    """Bound depth and size before anything recursive sees it; find what a grammar cannot keep."""
    level = [schema]  # dicts and lists of one depth
    depth = count = 0
    while level:
        depth, count = depth + 1, count + len(level)
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidRequestError(
                f"response_format: the schema is nested deeper than {MAX_SCHEMA_DEPTH} levels"
            )
        if count > MAX_SCHEMA_BYTES:  # each is two brackets at least
            raise _too_large()
        inner: list[object] = []
        for node in level:
            if isinstance(node, dict):
                _check_min_properties(node)
                inner.extend(node.values())
            elif isinstance(node, list | tuple):
                inner.extend(node)
        level = [node for node in inner if isinstance(node, dict | list | tuple)]


def _check_min_properties(node: dict[Any, Any]) -> None:
    """A name that the schema does not list may come twice, and is one property then."""
    least, required = node.get("minProperties"), node.get("required", [])
    if isinstance(least, int | float) and isinstance(required, list) and least > len(required) + 1:
        raise InvalidRequestError(
            f"response_format: minProperties of {least} is not supported beside {len(required)} "
            "required properties; require all but one by name"
        )


def _regex_grammar(regex: object, strips_blank: bool) -> str:
    if not isinstance(regex, str):
        raise InvalidRequestError(
            f"response_format: regex_schema must be a regular expression, got {_shorten(regex)}"
        )
    if len(regex) > MAX_REGEX_CHARS:
        raise InvalidRequestError(
            f"response_format: the regular expression is longer than {MAX_REGEX_CHARS} characters"
        )
    if not is_text(regex):
        raise InvalidRequestError(
            "response_format: the regular expression has half a surrogate pair, which is no text"
        )
    if (len(regex) - len(regex.rstrip("\\"))) % 2:  # the library would drop it
        raise InvalidRequestError("response_format: the regular expression ends in a backslash")
    from llguidance import regex_to_lark

    start = 'TEXT\nTEXT: " " BODY | (BODY & /([^ ](?s:.)*)?/)' if strips_blank else "BODY"
    return f"{_HEADER}start: {start}\nBODY: /{regex_to_lark(regex, 'dws')}/\n"


def _too_large() -> InvalidRequestError:
    return InvalidRequestError(
        f"response_format: the schema is larger than {MAX_SCHEMA_BYTES} bytes"
    )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
