"""Checks of options: each raises ConfigError with the name, the value and what is allowed."""

from collections.abc import Collection
from types import NoneType
from typing import TypeGuard

from vlmflow_engine.errors import ConfigError


def check_choice(name: str, value: object, allowed: Collection[object]) -> None:
    # By type as well: True is not 1 here.
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        listed = ", ".join(str(choice) for choice in allowed)
        raise ConfigError(f"{name} must be one of {listed}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def is_text(value: object) -> TypeGuard[str]:
    """Whether it is a str that UTF-8 can write: no half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number that the wire can hold."""
    return type(value) is int and -(2**63) <= value < 2**64


def check_whole(name: str, value: object) -> None:
    if not is_whole(value):
        raise ConfigError(f"{name} must be a whole number, got {value!r}")


def check_at_least(name: str, value: object, least: int) -> None:
    if not is_whole(value) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_within(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} must be in [{low}, {high}], got {value!r}")


def check_type(name: str, value: object, *allowed: type) -> None:
    if not isinstance(value, allowed):
        names = " or ".join("None" if item is NoneType else item.__name__ for item in allowed)
        raise ConfigError(f"{name} must be of type {names}, got {shown(value)}")


def shown(value: object) -> str:
    """A value of a wrong type, for a message: its type's name, and the beginning of it."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else f'{text[:77]}...'}"
