"""Every setting of the typed configuration by its dotted path, with two values that it may take."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ablate.config.schema import Cell
from ablate.results.record import OF_PLANS

# Settings of a mapping's members: what a user gives as adapter.options.dropout.
MEMBERS = {
    "masking.weights": {"input": (0.0, "plw"), "system": (0.0, 1.0)},
    "adapter.options": {"dropout": (0.0, 0.1), "alpha": (None, 16.0)},
    "init.options": {"steps": (1, 8)},
    "optimizer.options": {"ratio": (4.0, 16.0)},
    "dataset.columns": {"prompt": ("question", "text")},
    "dataset.options": {"rg": (0.1, 4.0)},
}
GROUP_NAMES = ("name", "kind")  # the group's own choice


def settings() -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Yield every path of the configuration that is no group's name, and two of its values."""
    yield from _of(Cell, "")


def _of(kind: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        path, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _of(hint, f"{path}.")
        elif path in MEMBERS:
            yield from ((f"{path}.{name}", pair) for name, pair in MEMBERS[path].items())
        elif field.name not in GROUP_NAMES and path not in OF_PLANS:
            yield path, _values(hint)


def _values(hint: Any) -> tuple[Any, Any]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if type(None) in args:
            return None, _values(next(a for a in args if a is not type(None)))[1]
        return _values(args[0])
    if origin is Literal:
        return args[0], args[1] if len(args) > 1 else f"not {args[0]}"
    if origin is tuple:
        one, other = _values(args[0])
        return [one, other], [other, other]
    if origin is not None and issubclass(origin, Mapping):
        raise TypeError(f"{hint}: state members of it above")
    return {bool: (False, True), int: (2, 4), float: (0.01, 0.5), str: ("this", "that")}[hint]
