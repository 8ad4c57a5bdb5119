"""The grids of `ablate tune`: the rates to begin with, and those beyond an edge."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ablate.config.build import plain
from ablate.config.overrides import key_of, top_of
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.experiment.tuned import default_lr
from ablate.experiment.tuned_table import Arm, Tuned, arm_of
from ablate.results.record import flattened

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

    from ablate.experiment.design import Named

STEP = 2.0  # the factor between two rates
AROUND = range(-2, 3)  # steps from the default to the rates that own data start from
VALIDATION = "validation"
LR = "train.lr"
# What an arm is tried over; the second and third follow from the rate.
TRIED_OVER = (LR, "train.full_rate", "train.untuned", "seed", "model.")
Levels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Try:
    """An arm at a rate on one base model: the run, and the overrides that make it.

    Attributes:
        settings: the configuration but for what an arm is tried over: rates, seeds, base models.
    """

    arm: Arm
    lr: float
    train_key: str
    overrides: tuple[str, ...]
    settings: tuple[tuple[str, Any], ...] = ()


def first(asked: list[str], loader: "ConfigLoader | None") -> list[list[str]]:
    """Return the grids to begin with: the one asked for, or the rates around the defaults.

    The study's rates are those of the micro world. Other data and models have, unless rates were
    asked for, rates `STEP` apart around each adapter's default.
    """
    from ablate.experiment.request import plan_grid

    named = {key_of(word) for word in asked}
    if "study=tuning" not in asked or "scale" in named:
        return [asked]
    own = [*asked, "scale=own"]
    cells = [one for one in plan_grid(own, loader=loader).design.cells if not one.cell.is_base]
    if all(one.cell.model.source == one.cell.dataset.source == "micro" for one in cells):
        return [asked]
    return [own] if LR in named else _joined(own, {c.overrides: _rates(c) for c in cells})


def _rates(named: "Named") -> str:
    default = default_lr(named.cell, named.identity.files)
    return ",".join(f"{default * STEP**step:.4g}" for step in AROUND)


def _joined(asked: list[str], rates: Mapping[tuple[str, ...], str]) -> list[list[str]]:
    """Return requests for cells at their `rates`; those that differ in one factor are one.

    Args:
        asked: a request whose grid has these cells; their overrides go before its own.
        rates: by the overrides of a cell, in Hydra's grammar.
    """
    grids = [_grid((*words, f"{LR}={lr}")) for words, lr in rates.items()]
    keys = dict.fromkeys(key for grid in grids for key in grid if key != LR)
    for key in keys:
        alike: dict[tuple[tuple[str, Levels], ...], dict[str, None]] = {}
        for grid in grids:
            rest = tuple(item for item in grid.items() if item[0] != key)
            alike.setdefault(rest, {}).update(dict.fromkeys(grid.get(key, ())))
        grids = [dict(rest) | ({key: tuple(v)} if v else {}) for rest, v in alike.items()]
    about_command = [word for word in asked if key_of(word) not in {*keys, LR}]
    return [
        [*about_command, *(f"{key}={','.join(values)}" for key, values in grid.items())]
        for grid in grids
    ]


def _grid(words: Iterable[str]) -> dict[str, Levels]:
    pairs = (word.partition("=") for word in words)
    return {key: (level,) for key, _, level in pairs}


def tries(words: list[str], loader: "ConfigLoader | None") -> list[Try]:
    """Return what a request tries.

    Raises:
        UserError: the request is wrong, or does not score the validation rows.
    """
    from ablate.experiment.request import plan_grid

    cells = plan_grid(words, loader=loader).design.cells
    for named in cells:
        if VALIDATION not in named.cell.evaluate.heldout:
            raise UserError(
                f"evaluate={named.cell.evaluate.name}: ablate tune chooses by the loss on the "
                "validation rows; leave it out, or give evaluate=validation"
            )
    return [
        Try(arm_of(c.cell), float(c.cell.train.lr), c.key, c.overrides, _settings(c.cell))
        for c in cells
        if not c.cell.is_base
    ]


def check_alike(tried: Iterable[Try]) -> None:
    """Refuse an arm that is tried under two settings: it would get one rate for both.

    Raises:
        UserError: it names the arm, the setting and its levels.
    """
    seen: dict[Arm, dict[str, Any]] = {}
    for each in tried:
        one = seen.setdefault(each.arm, dict(each.settings))
        for name, value in each.settings:
            if one.get(name) != value:
                arm = each.arm
                raise UserError(
                    f"{name}: {arm.adapter} of rank {arm.rank} on {arm.dataset} is tried at "
                    f"{one.get(name)} and at {value}, and would get one rate for both; tune them "
                    "one after the other, with another out= and rates="
                )


def _settings(cell: Cell) -> tuple[tuple[str, Any], ...]:
    own = flattened(plain(cell)).items()
    return tuple((name, value) for name, value in own if not name.startswith(TRIED_OVER))


def wider(rows: Iterable[Tuned], tried: Iterable[Try], asked: list[str]) -> list[list[str]]:
    """Return requests for the rates beyond the edges, in place of those of `asked`.

    They leave out its study, whose other products would put their own levels into every cell.
    """
    beyond = {
        row.arm: f"{row.lr * STEP if row.edge == 'high' else row.lr / STEP:.4g}"
        for row in rows
        if row.edge in ("low", "high")
    }
    wanted = {_stated(each): beyond[each.arm] for each in tried if each.arm in beyond}
    return _joined([word for word in asked if key_of(word) not in ("study", "scale")], wanted)


def _stated(each: Try) -> tuple[str, ...]:
    """Return the overrides of a cell without its rate, with the defaults that they leave unsaid.

    Another product of the study may vary these.
    """
    words = [word for word in each.overrides if key_of(word) != LR]
    said = {top_of(key_of(word)) for word in words}
    unsaid = {"rank": each.arm.rank, "init": each.arm.init, "optimizer": each.arm.optimizer}
    return (*words, *(f"{key}={level}" for key, level in unsaid.items() if key not in said))
