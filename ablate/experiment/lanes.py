"""Which cells of a grid can train side by side (`training.lanes`). No torch."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ablate.adapters import registry
from ablate.adapters.method import UNQUANTISED
from ablate.adapters.optimizers import optimizer_of
from ablate.adapters.start import changes_base, decays_to_start
from ablate.config.schema import Cell, Execution
from ablate.experiment.regularisers import left
from ablate.objective import token_rule_of

ACTING = ("rank_dropout", "attention_dropout", "neftune", "minkowski", "kl")


def obstacle(cell: Cell) -> str:
    """Return the setting because of which a cell trains alone, "" if it can train in a lane."""
    method = registry.method(cell.adapter)
    acting = [name for name in ACTING if getattr(left(cell.regulariser), name)]
    found = {
        f"adapter={cell.adapter.name}": not method.lanes,
        "adapter.options.dropout": bool(registry.settings(cell.adapter).get("dropout")),
        f"init={cell.init.name}": method.adapts and changes_base(cell),
        f"init={cell.init.name} with train.weight_decay": decays_to_start(cell),
        f"optimizer={cell.optimizer.name}": not optimizer_of(cell.optimizer)[0].lanes,
        _acting(cell, acting): bool(acting),
        f"base_precision={cell.base_precision}": cell.base_precision not in UNQUANTISED,
        f"base_precision={cell.base_precision} with adapter={cell.adapter.name}": (
            method.trains_base and cell.base_precision != "fp32"
        ),
        f"embeddings={cell.embeddings}": cell.embeddings != "frozen",
        "execution.compile=true": cell.execution.compile,
        f"execution.devices={cell.execution.devices}": cell.execution.devices > 1,
        "execution.layout=packed": cell.execution.layout == "packed",
    }
    return next((setting for setting, holds in found.items() if holds), "")


def _acting(cell: Cell, acting: Sequence[str]) -> str:
    """Return a regulariser's setting that acts while a cell trains, with its value."""
    return f"regulariser.{acting[0]}={getattr(cell.regulariser, acting[0]):g}" if acting else ""


def shared(cell: Cell) -> Hashable:
    """Return what cells have in common that train side by side, for cells without an obstacle."""
    train = cell.train
    steps = (train.epochs, train.max_steps, train.batch_size, train.batch_unit)
    split = (cell.loss.scope == "microbatch", cell.loss.label_smoothing)
    rule = token_rule_of(cell.loss)
    text = (train.max_length, train.boundary, train.precision)
    whole = registry.method(cell.adapter).trains_base
    parts: tuple[Any, ...] = (whole, cell.model, cell.dataset, cell.placement, cell.execution)
    return (*map(repr, parts), cell.base_precision, *steps, *split, rule, *text)


def groups(cells: Mapping[str, Cell]) -> list[list[str]]:
    """Return the keys of `cells` in groups that train side by side, at most `execution.lanes` each.

    The groups, and the keys of each, stand in the order of the first.
    """
    together: dict[Hashable, list[str]] = {}
    for key, cell in cells.items():
        alone = cell.is_base or cell.execution.lanes == 1 or obstacle(cell)
        together.setdefault(("alone", key) if alone else shared(cell), []).append(key)
    found = []
    for keys in together.values():
        most = cells[keys[0]].execution.lanes
        found += [keys[start : start + most] for start in range(0, len(keys), most)]
    return found


def with_company(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells, each with no more lanes than there are cells that can train beside it."""
    marks = [
        shared(cell) if cell.execution.lanes > 1 and not cell.is_base and not obstacle(cell) else ""
        for cell in cells
    ]
    if not any(marks):
        return list(cells)
    counts, known = Counter(marks), dict[tuple[int, int], Execution]()
    found = []
    for cell, mark in zip(cells, marks, strict=True):
        run, lanes = cell.execution, min(cell.execution.lanes, counts[mark] if mark else 1)
        # One object for all that are alike: what is computed of a cell is looked up by its parts.
        capped = known.setdefault((id(run), lanes), replace(run, lanes=lanes))
        found.append(cell if lanes == run.lanes else replace(cell, execution=capped))
    return found


def left_alone(cells: Iterable[Cell]) -> str:
    """Return how many cells train alone though lanes were asked for, and why; "" for none."""
    asked = [cell for cell in cells if cell.execution.lanes > 1 and not cell.is_base]
    why = Counter(f"with {setting}" for setting in map(obstacle, asked) if setting)
    alike = Counter(shared(cell) for cell in asked if not obstacle(cell))
    if lonely := sum(count == 1 for count in alike.values()):
        why["without another that has all that lanes share"] = lonely
    if not why:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in why.items())
    lanes = ",".join(str(n) for n in dict.fromkeys(cell.execution.lanes for cell in asked))
    count = sum(why.values())
    return f"execution.lanes={lanes}: {count:,} of {len(asked):,} runs train alone ({reasons})"
