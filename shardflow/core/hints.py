"""Annotations, resolved as far as they can be, and put into words for messages."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin


def resolve_hints(
    owner: Any, annotations: Mapping[str, Any] | None = None, localns: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`typing.get_type_hints`, where a hint that cannot be resolved is `Any` and spoils no other.

    `annotations`: those of a function whose hints are wanted; None for a class. `localns`: more names.
    """
    names = dict(localns) if localns else None
    try:
        return typing.get_type_hints(owner, localns=names)
    except Exception:
        pass
    hints: dict[str, Any] = {}
    if annotations is not None:
        hints.update(_each_hint(annotations, getattr(owner, "__globals__", {}), names))
    else:
        for base in reversed(owner.__mro__):
            module = sys.modules.get(base.__module__)
            hints.update(_each_hint(inspect.get_annotations(base), vars(module) if module else {}, names))
    return hints


def class_hints(cls: Any, bound: Mapping[Any, Any]) -> dict[str, Any]:
    """The hints of a class's fields, with its type variables replaced by what `bound` says."""
    hints = resolve_hints(cls)
    return {name: _substitute(hint, bound) for name, hint in hints.items()} if bound else hints


def required_keys(typed_dict: Any) -> list[str]:
    """The keys that a TypedDict must have; its own `__required_keys__` does not see
    `NotRequired` in annotations that are text."""
    required = set(typed_dict.__required_keys__)
    try:
        hints = typing.get_type_hints(typed_dict, include_extras=True)
    except Exception:
        hints = {}
    for name, hint in hints.items():
        if get_origin(hint) is typing.NotRequired:
            required.discard(name)
        elif get_origin(hint) is typing.Required:
            required.add(name)
    return sorted(required)


def describe(annotation: Any) -> str:
    """An annotation as its author wrote it, more or less, for a message."""
    if annotation is None or annotation is types.NoneType:
        return "None"
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__qualname__
    return str(annotation).replace("typing.", "")


def _each_hint(
    annotations: Mapping[str, Any], globalns: dict[str, Any], localns: dict[str, Any] | None
) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for name, annotation in annotations.items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            hints.update(typing.get_type_hints(holder, globalns=globalns, localns=localns))
        except Exception:
            hints[name] = Any
    return hints


def _substitute(hint: Any, bound: Mapping[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return bound.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if parameters and not isinstance(hint, type):
        return hint[tuple(bound.get(parameter, parameter) for parameter in parameters)]
    return hint
