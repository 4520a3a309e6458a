"""Dials of a frozen dataclass as text: `FIELD=VALUE`, read and written as the field's type."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")
_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def with_dials(config: Config, dials: Sequence[str]) -> Config:
    """Return a dataclass with changes `FIELD=VALUE`; commas divide a tuple, `none` is None.

    Raises:
        ValueError: No such field, a value that is not of the field's type, infinite or NaN, or one
            that the dataclass refuses. The message begins with the change.
    """
    hints = get_type_hints(type(config))
    names = [field.name for field in fields(config)]  # type: ignore[arg-type]
    for dial in dials:
        name, equals, text = dial.partition("=")
        if not equals or name not in names:
            raise ValueError(
                f"{dial!r} must be FIELD=VALUE with a field of {', '.join(sorted(names))}"
            )
        found = _read(text, hints[name])
        if not found:
            raise ValueError(f"{dial}: {name} must be {_words(hints[name])}, got {text!r}")
        try:
            config = replace(config, **{name: found[0]})  # type: ignore[type-var]
        except ValueError as error:
            raise ValueError(f"{dial}: {error}") from error
    return config


def changed_dials(config: object, usual: object) -> list[str]:
    """Return what `with_dials` takes to make a dataclass of another of its kind."""
    return [
        f"{field.name}={_written(getattr(config, field.name))}"
        for field in fields(config)  # type: ignore[arg-type]
        if getattr(config, field.name) != getattr(usual, field.name)
    ]


def _read(text: str, kind: Any) -> list[Any]:
    """Return the value of a type that a text is, in a list; an empty one where it is none."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return next((found for part in parts if (found := _read(text, part))), [])
    if origin is Literal:
        return [text] if text in parts else []
    if origin is tuple:
        pieces = [_read(piece, parts[0]) for piece in text.split(",")] if text else []
        return [tuple(piece[0] for piece in pieces)] if all(pieces) else []
    if kind is NoneType:
        return [None] if text.lower() == "none" else []
    if kind is bool:
        return [_BOOLS[text.lower()]] if text.lower() in _BOOLS else []
    if kind is str:
        return [text]
    if kind not in (int, float):
        return []
    try:
        value = kind(text)
    except ValueError:
        return []
    return [value] if math.isfinite(value) else []


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def _words(kind: Any) -> str:
    """Return what a text of a type looks like."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        return f"{_words(parts[0])}, more of them with commas"
    plain = {int: "a whole number", float: "a finite number", bool: "true or false"}
    return plain.get(kind, "none" if kind is NoneType else "a value that text can't give")
