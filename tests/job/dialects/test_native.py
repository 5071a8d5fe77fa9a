"""Whatever the bytes, every line but a blank one becomes a record, or the reason it is none."""

import json
from collections.abc import Iterable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmflow.job.dialects import BadLine
from vlmflow.job.dialects import lines as manifest_lines
from vlmflow.job.dialects.json_lines import parse_line
from vlmflow.job.dialects.lines import split_lines
from vlmflow.job.dialects.native import NativeDialect
from vlmflow.job.record import RESULT_FIELDS, Record

LEAST = {"id": "r1", "prompt": "Describe it."}


def parse(*chunks: bytes) -> list[Record | BadLine]:
    lines = [(number, line) for number, _, line in split_lines(chunks) if line.strip()]
    return [parse_line(NativeDialect(), n, number, line) for n, (number, line) in enumerate(lines)]


def parse_one(content: Any) -> Record | BadLine:
    """What becomes of one line: its bytes, its text, or the value it stands for."""
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    [item] = parse(content)
    return item


def record_of(content: Any) -> Record:
    item = parse_one(content)
    assert isinstance(item, Record), item
    return item


def reason_of(content: Any) -> str:
    item = parse_one(content)
    assert isinstance(item, BadLine), item
    assert (item.failure.stage, item.failure.error_class) == ("manifest", "invalid_line")
    assert not item.failure.retryable
    return item.failure.message


def cut_up(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]


# What may stand for a value in a line: JSON, and what only looks like it.
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
texts = st.one_of(
    json_values.map(json.dumps),
    st.text(st.characters(), max_size=9).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(["1e999", "-1e999", '"\ud800"', '"\\ud800"', '["a.png"]', f"{2**70}", "nul"]),
)
fields = st.fixed_dictionaries(
    {"id": texts | st.just('"r1"'), "prompt": texts | st.just('"x"')},
    optional={
        "images": texts,
        "metadata": texts,
        "generation": st.builds(
            '{{"{}": {}}}'.format,
            st.sampled_from(["top_k", "max_new_tokens", "random_seed", "stop_token_ids"]),
            texts | st.lists(st.integers()).map(json.dumps),
        ),
        "error": texts,
    },
)
likely_lines = fields.map(
    lambda values: "{" + ", ".join(f'"{name}": {text}' for name, text in values.items()) + "}"
)
# Any bytes, and bytes that come nearer to a manifest.
lines = st.one_of(
    st.binary(max_size=30),
    likely_lines.map(lambda line: line.encode(errors="surrogatepass")),
    st.sampled_from([b"", b" \t", b"\r", b"{}", b"null", b"\xef\xbb\xbf", b"\xed\xa0\x80"]),
)
manifests = st.lists(lines, max_size=6).map(b"\n".join)


@given(data=manifests, places=st.lists(st.integers(0, 10_000), max_size=5))
def test_every_line_that_is_not_blank_comes_out_however_the_bytes_arrive(
    data: bytes, places: list[int]
) -> None:
    items = parse(*cut_up(data, places))
    numbers = [n for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    assert [item.ordinal for item in items] == list(range(len(numbers)))
    assert [item.line for item in items] == numbers
    assert items == parse(data) or "nan" in repr(items)


@given(data=manifests)
def test_whatever_is_taken_from_a_manifest_can_be_sent_and_written(data: bytes) -> None:
    for item in parse(data):
        json.dumps(item.record_id, ensure_ascii=False).encode()
        if isinstance(item, BadLine):
            json.dumps(item.failure.as_dict(), ensure_ascii=False).encode()
        else:
            msgpack.packb([item.ordinal, item.prompt, item.generation])
            passed_on = [item.image_uris, item.passed_through]
            json.dumps(passed_on, ensure_ascii=False, allow_nan=False).encode()


def test_record_has_all_that_its_line_says() -> None:
    line = LEAST | {
        "images": ["a.png", "s3://bucket/b.png"],
        "expected": ["a cat", "cat"],
        "metadata": {"split": "test"},
        "generation": {"max_new_tokens": 32},
        "my own": 5,
    }
    assert record_of(line) == Record(
        ordinal=0,
        line=1,
        record_id="r1",
        prompt=[
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": {"$image": 0}},
                    {"type": "image", "image": {"$image": 1}},
                    {"type": "text", "text": "Describe it."},
                ],
            }
        ],
        image_uris=("a.png", "s3://bucket/b.png"),
        generation={"max_new_tokens": 32},
        passed_through={
            "expected": ["a cat", "cat"],
            "metadata": {"split": "test"},
            "my own": 5,
        },
    )


def test_images_of_messages_are_taken_out_in_their_order() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
                {"type": "text", "text": "and"},
                {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
            ],
        },
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
    ]
    record = record_of({"id": "r1", "messages": messages})
    assert record.image_uris == ("a.png", "data:image/png;base64,AAAA", "a.png")
    assert record.prompt == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": {"$image": 0}},
                {"type": "text", "text": "and"},
                {"type": "image", "image": {"$image": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "image", "image": {"$image": 2}}]},
    ]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n \t\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_blank_lines_line_ends_and_a_byte_order_mark_do_not_matter(
    start: bytes, end: bytes
) -> None:
    line = json.dumps(LEAST).encode()
    items = parse(start + line + b"\r\n\r\n" + line + end)
    assert [type(item) for item in items] == [Record, Record]
    first = 1 + start.count(b"\n")
    assert [item.line for item in items] == [first, first + 2]


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\t\r\n"])
def test_manifest_of_blank_lines_has_no_records(data: bytes) -> None:
    assert parse(data) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("{'id': 'r1'}", "not valid JSON"),
        (json.dumps(LEAST) + " x", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (LEAST | {"metadata": float("nan")}, "not valid JSON"),
        (LEAST | {"metadata": float("-inf")}, "not valid JSON"),
        ('{"id": "r1", "prompt": "x", "metadata": 1e999}', ""),
        ('{"id": "r1", "prompt": "x", "metadata": [-1e999]}', ""),
        (f'{{"id": "r1", "prompt": "x", "metadata": {"9" * 5000}}}', "not valid JSON"),
        (LEAST | {"prompt": "half a \ud83d pair"}, "not valid JSON"),
        (LEAST | {"metadata": {"\udc00": 1}}, "not valid JSON"),
        (b'{"id": "\xed\xa0\x80", "prompt": "x"}', "not valid JSON"),
        ('{"id": "r1", "prompt": "x"}'.encode("utf-16"), "not valid JSON"),
        ([LEAST], "this is a list"),
        ("null", "this is a NoneType"),
        ({"prompt": "x"}, "'id' must be"),
        (LEAST | {"id": ""}, "'id' must be"),
        (LEAST | {"id": 5}, "'id' must be"),
        ({"id": "r1"}, "either 'prompt' or 'messages'"),
        (LEAST | {"messages": []}, "either 'prompt' or 'messages'"),
        (LEAST | {"prompt": ["x"]}, "'prompt' must be"),
        (LEAST | {"images": "a.png"}, "'images'"),
        (LEAST | {"images": [None]}, "'images'"),
        (LEAST | {"images": [""]}, "'images'"),
        ({"id": "r1", "messages": []}, "'messages' must be"),
        ({"id": "r1", "messages": "x"}, "'messages' must be"),
        ({"id": "r1", "messages": ["x"]}, "a message is"),
        ({"id": "r1", "messages": [{"content": "x"}]}, "a message is"),
        ({"id": "r1", "messages": [{"role": "user"}]}, "'content' must be"),
        ({"id": "r1", "messages": [{"role": "user", "content": "x"}], "images": ["a"]}, "images"),
    ],
)
def test_line_that_is_no_record_is_refused_with_the_reason(line: Any, reason: str) -> None:
    message = reason_of(line)
    assert message.startswith("line 1: ")
    assert reason in message
    assert len(message) < 200


@pytest.mark.parametrize(
    "part",
    [
        *("x", None, {}, {"type": "text"}, {"type": "text", "text": 5}),
        *({"type": "image_url"}, {"type": "image_url", "image_url": {"url": ""}}),
        *({"type": "image_url", "image_url": {}}, {"type": "input_audio", "input_audio": {}}),
        {"type": "image", "image": {"$image": 0}},
    ],
    ids=str,
)
def test_part_of_an_unknown_type_is_refused(part: Any) -> None:
    line = {"id": "r1", "messages": [{"role": "user", "content": [part]}]}
    assert "a part is {'type': 'text'" in reason_of(line)


@pytest.mark.parametrize("field", sorted(RESULT_FIELDS))
def test_field_with_a_name_of_the_results_is_refused_by_name(field: str) -> None:
    assert f"field '{field}' is a result's" in reason_of(LEAST | {field: 1})


@pytest.mark.parametrize(
    "generation",
    [
        *([], [1], "x", None, 5),
        {"max_tokens": 5},
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"temperature": "hot"},
        {"temperature": 2.1},
        {"top_k": 0.5},
        {"top_k": 2**70},
        {"max_new_tokens": 2**70},
        {"do_sample": "no"},
        {"random_seed": "x"},
        {"random_seed": 2**70},
        {"stop_token_ids": "abc"},
        {"stop_token_ids": 5},
        {"stop_token_ids": {"a": 1}},
        {"stop_token_ids": [2**70]},
    ],
    ids=str,
)
def test_generation_option_that_is_not_allowed_is_refused(generation: Any) -> None:
    reason = reason_of(LEAST | {"generation": generation})
    assert reason.startswith("line 1: 'generation': ")
    assert "GenerationConfig" not in reason


def test_bad_line_bears_the_id_it_could_be_read_with() -> None:
    assert parse_one(LEAST | {"generation": {"x": 1}}).record_id == "r1"
    assert parse_one("{").record_id is None
    assert parse_one({"id": 5}).record_id is None


def test_bad_line_leaves_its_neighbours_alone() -> None:
    items = parse(b'{"id": "a", "prompt": "x"}\n{\n{"id": "b", "prompt": "x"}\n')
    assert [type(item) for item in items] == [Record, BadLine, Record]
    assert [item.ordinal for item in items] == [0, 1, 2]


def test_value_is_never_so_deep_that_it_can_be_read_but_not_written() -> None:
    for depth in range(0, 1200, 10):
        line = f'{{"id": "r1", "prompt": "x", "metadata": {"[" * depth}{"]" * depth}}}'
        item = parse_one(line)
        if isinstance(item, Record):
            # As far down the stack again as a job may be when it writes and reads the line.
            called_deeper(100, lambda item=item: json.loads(json.dumps(item.passed_through)))


def called_deeper(depth: int, call: Any) -> Any:
    return called_deeper(depth - 1, call) if depth else call()


@pytest.mark.parametrize("num_bytes", [40, 41, 100])
def test_line_up_to_the_limit_is_read_and_a_longer_one_is_not(
    num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_lines, "MAX_LINE_BYTES", 40)
    line = b'{"id":"a","prompt":"' + b"x" * (num_bytes - 22) + b'"}'
    for chunks in ([line + b"\n{\n"], [bytes([byte]) for byte in line + b"\n{\n"]):
        first, second = parse(*chunks)
        assert isinstance(first, Record) == (num_bytes <= 40)
        assert isinstance(first, Record) or "longer than 40 bytes" in first.failure.message
        assert second.line == 2


def test_line_without_an_end_is_not_gathered_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_lines, "MAX_LINE_BYTES", 1 << 20)
    [(number, _, line)] = split_lines(bytes(1 << 16) for _ in range(100))
    assert number == 1
    assert len(line) == (1 << 20) + 1
