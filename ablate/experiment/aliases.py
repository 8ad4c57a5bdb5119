"""What the aliases of a design have in common, so that a plan can say it in a few lines. No torch.

An alias is told by the levels in which it differs from the run's first name, and by those that all
aliases differing in the same factors share: `masking=none plw=0 is masking=instruction`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.experiment.design import Design, Named
from ablate.experiment.labels import label

Levels = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Renamed:
    """Aliases that differ from the first names of their runs in the same factors."""

    levels: str  # of the aliases: "masking=none plw=0"
    instead: str  # the first names' levels of what differs: "masking=instruction"
    count: int


def aliases_by_kind(design: Design) -> list[Renamed]:
    """Return the aliases of a design by kind, those that differ in fewest factors first."""
    kinds: dict[str, tuple[Levels, list[Levels]]] = {}
    for named in design.cells:
        if named.alias:
            instead = _differing(named, design.runs[named.key][0])
            kinds.setdefault(overrides(instead), (instead, []))[1].append(named.levels)
    found = [_told(instead, own) for instead, own in kinds.values()]
    return [told for _, told in sorted(found, key=lambda one: one[0])]


def _differing(named: Named, first: Named) -> dict[str, Any]:
    """Return the levels of a run's first name that are not the alias's."""
    return {k: level for k, level in first.levels.items() if named.levels.get(k) != level}


def _told(instead: Levels, aliases: Sequence[Levels]) -> tuple[int, Renamed]:
    words = []
    for key in aliases[0]:
        levels = list(dict.fromkeys(str(one.get(key)) for one in aliases))
        if len(levels) == 1 or key in instead:
            words.append(f"{key}={','.join(levels)}")
    return len(instead), Renamed(" ".join(words), overrides(instead), len(aliases))


def overrides(levels: Levels) -> str:
    """Return levels as a command line gives them."""
    return " ".join(f"{key}={level}" for key, level in levels.items())


def cell_name(named: Named) -> str:
    """Return what a cell is called: by what varies, or where nothing does by model and adapter."""
    cell = named.cell
    if cell.is_base:
        return f"model={label(cell.model)}"
    return overrides(named.levels) or f"model={label(cell.model)} adapter={cell.adapter.name}"
