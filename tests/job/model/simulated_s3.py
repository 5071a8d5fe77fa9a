"""S3 as a value: a bucket never changes, requests are data, and a client stops at each.

A worker is run from its beginning with the answers that it has had so far. At the first request
beyond them it is stopped, so what it does next is a value too, and a worker's state is nothing but
the list of its answers.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    data: bytes
    only_if_absent: bool


@dataclass(frozen=True, slots=True)
class Get:
    key: str


@dataclass(frozen=True, slots=True)
class List:
    prefix: str


Request = Put | Get | List

DONE, THERE_ALREADY, LOST = "done", "there already", "lost"
Answer = str | bytes | tuple[str, ...] | None  # of a Get: the body or None; of a List: the keys


@dataclass(frozen=True)
class Objects:
    """What a bucket holds."""

    items: frozenset[tuple[str, bytes]] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_key", dict(self.items))

    by_key: "dict[str, bytes]" = None  # type: ignore[assignment]  # made of the items

    def __hash__(self) -> int:
        return hash(self.items)  # a frozenset keeps its hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Objects) and self.items == other.items

    def carry_out(self, request: Request) -> tuple["Objects", Answer]:
        """What the bucket holds then, and what it answers."""
        if isinstance(request, Get):
            return self, self.by_key.get(request.key)
        if isinstance(request, List):
            return self, tuple(sorted(k for k in self.by_key if k.startswith(request.prefix)))
        there = self.by_key.get(request.key)
        if there is not None and request.only_if_absent:
            return self, THERE_ALREADY
        items = self.items - {(request.key, there)} if there is not None else self.items
        return Objects(items | {(request.key, request.data)}), DONE


class OutOfAnswers(BaseException):
    """Stops a worker; nothing in the product catches it."""

    def __init__(self, request: Request) -> None:
        self.request = request


class Client:
    """As much of boto3's client as S3Store uses; each request goes to `ask`."""

    def __init__(self, ask: Callable[[Request], Answer]) -> None:
        self._ask = ask

    def put_object(
        self, Bucket: str, Key: str, Body: bytes, ContentType: str, IfNoneMatch: str = ""
    ) -> None:
        request = Put(Key, Body, only_if_absent=bool(IfNoneMatch))
        answer = self._ask(request)
        while answer == LOST:  # boto3 sends it again
            answer = self._ask(request)
        if answer == THERE_ALREADY:
            raise _error("PreconditionFailed", 412)

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        body = self._ask(Get(Key))
        if body is None:
            raise _error("NoSuchKey", 404)
        assert isinstance(body, bytes)
        return {"ContentLength": len(body), "Body": io.BytesIO(body)}

    def get_paginator(self, name: str) -> "Client":
        assert name == "list_objects_v2"
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        keys = self._ask(List(Prefix))
        assert isinstance(keys, tuple)
        return (
            [{"Contents": [{"Key": key, "Size": 1, "ETag": "x"} for key in keys]}] if keys else [{}]
        )


def client_of(answers: Sequence[Answer]) -> Client:
    """A client that gives these answers in turn and stops whoever asks for more."""
    left = iter(answers)

    def ask(request: Request) -> Answer:
        for answer in left:
            return answer
        raise OutOfAnswers(request)

    return Client(ask)


def client_to_read(objects: Objects) -> Client:
    """A client that answers from what is there."""
    return Client(lambda request: objects.carry_out(request)[1])


def _error(code: str, status: int) -> ClientError:
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "simulated")
