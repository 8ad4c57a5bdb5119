"""Every setting with a line of what it is, its default and what it may be, read from `conf/`.

What a setting is and its default stand in `conf/config.yaml`, its values in the schema or, for a
group, in the names of its levels' files: the help repeats none of them. No Hydra, no torch.
"""

import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ablate.config.command import Command
from ablate.config.schema import Cell
from ablate.paths import conf_dir

GIVEN = "..."  # stands for the default of a setting that every level states itself
_LEVEL = re.compile(r"  - (?P<key>[a-z]+): (?P<value>\w+)(?:  # (?P<about>.*))?")
_LINE = re.compile(
    r"(?P<indent>(?:  )*)(?P<muted># )?(?P<key>[a-z_]+):"
    r"(?: +(?P<value>[^#]*?))??(?: +# (?P<about>.*))?"
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the command line."""

    key: str  # as it is given: masking, train.lr
    default: str  # as it is written in YAML, or GIVEN
    about: str  # a phrase; "" where none is needed
    values: tuple[str, ...]  # all that it may be; () where that is no list
    group: bool  # whether its values are levels, a file each


@cache
def settings() -> Mapping[str, Setting]:
    """Return every setting by its key: groups first, then as `conf/config.yaml` orders them."""
    lines = (conf_dir() / "config.yaml").read_text(encoding="utf-8").splitlines()
    groups, others = dict[str, Setting](), dict[str, Setting]()
    above: list[str] = []  # the keys of the sections that a line stands in
    for line in lines:
        if found := _LEVEL.fullmatch(line):
            key = found["key"]
            groups[key] = Setting(key, found["value"], found["about"] or "", levels(key), True)
        elif (found := _LINE.fullmatch(line)) and (not found["muted"] or found["value"] == GIVEN):
            above = [*above[: len(found["indent"]) // 2], found["key"]]
            key = ".".join(above)
            if found["value"] and above[0] not in ("hydra", "bundle", "defaults"):
                others[key] = _setting(key, found["value"], found["about"] or "")
    return groups | others


def _setting(key: str, default: str, about: str) -> Setting:
    kind: Any = Cell if key.partition(".")[0] in get_type_hints(Cell) else Command
    for step in key.split("."):
        kind = get_type_hints(kind).get(step) if isinstance(kind, type) else None
    return Setting(key, default, about, _values(kind), False)


def _values(kind: Any) -> tuple[str, ...]:
    """Return all that an annotation of the schema allows; () where that is no list."""
    if kind is bool:
        return ("true", "false")
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        parts = [_values(part) for part in get_args(kind) if part is not type(None)]
        null = ("null",) * (type(None) in get_args(kind))
        return (*(v for part in parts for v in part), *null) if all(parts) else ()
    return ()


def levels(group: str, config_dirs: Iterable[str | Path] = ()) -> tuple[str, ...]:
    """Return the names of the levels of a group, of the user's own folders as well."""
    folders = [conf_dir(), *map(Path, config_dirs)]
    return tuple(sorted({p.stem for folder in folders for p in (folder / group).glob("*.yaml")}))


def about_level(group: str, name: str) -> str:
    """Return the first sentence of what the file of a level says of itself."""
    lines = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    said = []
    for line in lines:
        if not line.startswith("#"):
            break
        said.append(line.lstrip("# ").rstrip())
    return re.split(r"(?<=[^\W_A-Z.][^.])\.(?= |$)", " ".join(said), maxsplit=1)[0].rstrip(".")
