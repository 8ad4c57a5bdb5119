"""Builds the typed configuration of a cell from the plain dictionary that Hydra composed.

Nothing after this module uses Hydra. An unknown key, a missing key and a value of the wrong type
are each an error of one line that names the setting.
"""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ablate.config.schema import Cell
from ablate.errors import UserError, brief, nearest, unknown

T = TypeVar("T")
LARGEST = 2**31 - 1  # of whole numbers


def build(tree: Mapping[str, Any]) -> Cell:
    """Return the cell that the composed `tree` describes.

    Raises:
        UserError: an unknown, missing or wrong setting.
    """
    return typed(Cell, tree)


def typed(kind: type[T], tree: Any, path: str = "") -> T:
    """Return `tree`, which stands at `path`, as the dataclass `kind`; errors as of `build`."""
    made: T = _convert(kind, tree, path)
    return made


def plain(value: Any) -> Any:
    """Return `value` as JSON-ready dictionaries, lists and scalars; floats stay floats."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _convert(kind: Any, value: Any, path: str) -> Any:
    """Return `value` as `kind`, a dataclass or an annotation of the schema."""
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, path)
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return plain(value)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, path)
    if origin is Literal:
        if value not in args or isinstance(value, bool):
            raise unknown(path, _typed(value), args)
        return value
    if origin is tuple:
        return _convert_tuple(args, value, path)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(f"{path}={_typed(value)}: must be a table of names and values")
        return {str(k): _convert(args[1], v, f"{path}.{k}") for k, v in value.items()}
    return _convert_scalar(kind, value, path)


def _convert_dataclass(kind: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{path}={_typed(value)}: must be a group of settings")
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in fields:
            have = f" {path} has {', '.join(fields)}." if path else ""
            raise UserError(f"{prefix}{key}: no such setting.{nearest(key, fields) or have}")
    filled = {}
    for name, spec in fields.items():
        if name in value and value[name] != "???":
            filled[name] = _convert(hints[name], value[name], prefix + name)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise UserError(f"{prefix}{name}: is needed; give it as {prefix}{name}=VALUE")
    return kind(**filled)


class _OutOfRange(UserError):
    """A value of the right type: no other type of a union would take it."""


def _convert_union(args: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in args:
        return None
    options = [a for a in args if a is not type(None)]
    for option in options:
        try:
            return _convert(option, value, path)
        except _OutOfRange:
            raise
        except UserError as error:
            if not str(error).startswith(f"{path}="):  # of an entry inside the value
                raise
    names = [_describe(option) for option in options] + ["null"] * (len(options) < len(args))
    raise UserError(f"{path}={_typed(value)}: must be {' or '.join(names)}")


def _convert_tuple(args: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, list | tuple):
        raise UserError(f"{path}={_typed(value)}: must be a list")
    if args[-1] is Ellipsis:
        return tuple(_convert(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if len(value) != len(args):
        raise UserError(f"{path}={list(value)}: must be {len(args)} values")
    pairs = zip(args, value, strict=True)
    return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(pairs))


def _convert_scalar(kind: Any, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = math.copysign(math.inf, value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise _OutOfRange(f"{path}={_typed(value)}: must be a finite number")
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{path}={_typed(value)}: must be {_describe(kind)}")
    if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise UserError(f"{path}={brief(value)}: is no text: it has a NUL or half a surrogate pair")
    if isinstance(value, int) and abs(value) > LARGEST:
        most = f"at most {LARGEST}" if value > 0 else f"at least -{LARGEST}"
        raise _OutOfRange(f"{path}={brief(value)}: must be {most}")
    return value


def _typed(value: Any) -> Any:
    """Return a value as a command line has it: null, true and false as YAML writes them."""
    return json.dumps(value) if value is None or isinstance(value, bool) else value


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(str(a) for a in get_args(kind))
    words = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    return words.get(kind, "a list" if get_origin(kind) is tuple else "a table")
