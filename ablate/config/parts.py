"""The parts of composed trees: one object a value, named after their level, without secrets."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ablate.config.overrides import parse
from ablate.errors import UserError

# A record must not hold secrets, nor a key depend on time or launcher.
_REFUSED = re.compile(r"\$\{\s*(oc\.env|env|now|hydra)\s*[:.]")

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One top-level part of a tree, interned: equal parts are one object."""

    value: Any
    interpolated: bool


class Interned:
    """The parts made so far; the same value gives the same object."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Part] = {}

    def part(self, name: str, value: Any) -> Part:
        """Return the part with this value.

        Raises:
            UserError: it refers to the environment, to time or to Hydra.
        """
        text = json.dumps(_numbers_alike(value), sort_keys=True)
        refused = _REFUSED.search(text)
        if refused:
            raise UserError(
                f"{name}: ${{{refused[1]}:...}} is refused inside a cell: its value may be "
                "secret or change with time; write the value itself"
            )
        return self._known.setdefault((name, text), Part(value, "${" in text))


def named(group: str, value: Any, option: str | None, lines: Iterable[str]) -> Any:
    """Return a group's part with the level's name: the file's, unless an override gave another."""
    if option is None or not isinstance(value, dict):
        return value
    overrides = [parse(line) for line in lines]
    table = any(o.key_or_group == group and isinstance(o.value(), dict) for o in overrides)
    renamed = table or any(o.key_or_group == f"{group}.name" for o in overrides)
    return value if renamed and "name" in value else value | {"name": option}


def _numbers_alike(value: Any) -> Any:
    """Return `value` with whole numbers as floats: plw=1 and plw=1.0 are one level."""
    if isinstance(value, dict):
        return {key: _numbers_alike(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers_alike(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Yield every key of a composed tree in full, Hydra's own apart."""
    for key, value in tree.items():
        if prefix or key != "hydra":
            yield f"{prefix}{key}"
            if isinstance(value, Mapping):
                yield from flatten(value, f"{prefix}{key}.")
