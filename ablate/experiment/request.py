"""A command line understood: the grid that it asks for, checked as a design."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader

from ablate.adapters import compatibility
from ablate.config.compose import Grid, expand
from ablate.config.composer import config_loader
from ablate.config.grid import cells
from ablate.config.overrides import key_of, top_of
from ablate.config.parts import Tree
from ablate.config.schema import Cell
from ablate.errors import UserError
from ablate.experiment.design import Design, design
from ablate.experiment.known import Assumed, Here
from ablate.experiment.tuned import Rates, own_table
from ablate.models.gpu import check_driver, no_gpu
from ablate.models.gpu_slots import gpus
from ablate.paths import check_folder


def check_gpu(cells: Iterable[Cell]) -> None:
    """Check that there is a GPU if one of the cells asks for it.

    Raises:
        UserError: there is none.
    """
    if any(cell.execution.device == "cuda" for cell in cells):
        check_driver()
        import torch

        # A GPU is only counted: this process may become a worker, which takes one of them first.
        if not (torch.cuda.is_available() if not gpus() else torch.backends.cuda.is_built()):
            raise no_gpu()


def check_machine(cells: Iterable[Cell]) -> None:
    """Check that this machine has what cells need to be computed: a GPU, bitsandbytes.

    Raises:
        UserError: it lacks something.
    """
    known = list(cells)
    check_gpu(known)
    for lacking in compatibility.lacking_here(known):
        raise UserError(lacking)


@dataclass(frozen=True, slots=True)
class Request:
    """What a command line asks for: its grid, the checked design and the command's settings."""

    grid: Grid
    design: Design
    out: Path
    settings: Tree
    assumed: tuple[str, ...] = ()  # what a plan took from published sizes, in words
    own_rates: tuple[str, ...] = ()  # learning rates of the user's own table, in words


def plan_grid(
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[str] = (),
    loader: ConfigLoader | None = None,
    known: Here | None = None,
    most: int | None = None,
) -> Request:
    """Return what the command-line `overrides` ask for; every cell of the grid is checked.

    Args:
        overrides: in Hydra's grammar.
        config_dirs: folders with the user's own levels.
        loader: Hydra's own, where Hydra runs; it knows those folders already.
        known: where models and data are found; on this machine and the hub unless given.
        most: cells that may be asked for.

    Raises:
        UserError: the request is wrong.
    """
    for line in overrides:
        if top_of(key_of(line)) == "pretrain":
            raise UserError(f"{line}: is for ablate pretrain alone")
    grid = expand(overrides, loader=loader or config_loader(config_dirs), most=most)
    if grid.settings["single"] and len(grid.points) > 1:
        count = len(grid.points)
        raise UserError(f"one cell is taken here, not {count}; ablate sweep takes a grid")
    check_folder("out", Path(grid.settings["out"]), write=False)
    rates = Rates(own_table(grid.settings["rates"]))
    checked = design(
        cells(grid),
        study=str(grid.study.get("name") or "none"),
        skip_illegal=bool(grid.settings["skip_illegal"]),
        bases=bool(grid.settings["score_base"]),
        known=known,
        rates=rates,
    )
    assumed = tuple(known.said) if isinstance(known, Assumed) else ()
    own = tuple(
        f"{row.adapter} rank {row.rank} on {row.model}, {row.dataset}: {row.lr:.3g} ({rates.own})"
        for row in rates.from_own()
    )
    return Request(grid, checked, Path(grid.settings["out"]), grid.settings, assumed, own)
