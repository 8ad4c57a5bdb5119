"""A command line understood: the grid that it asks for, checked as a design."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader

from ablate.config.compose import Grid, expand
from ablate.config.composer import config_loader
from ablate.config.grid import cells
from ablate.config.parts import Tree
from ablate.experiment.design import Design, design


@dataclass(frozen=True, slots=True)
class Request:
    """What a command line asks for: its grid, the checked design and the command's settings."""

    grid: Grid
    design: Design
    out: Path
    settings: Tree


def plan_grid(
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[str] = (),
    loader: ConfigLoader | None = None,
) -> Request:
    """Return what the command-line `overrides` ask for; every cell of the grid is checked.

    Args:
        overrides: in Hydra's grammar.
        config_dirs: folders with the user's own levels.
        loader: Hydra's own, where Hydra runs; it knows those folders already.

    Raises:
        UserError: the request is wrong.
    """
    grid = expand(overrides, loader=loader or config_loader(config_dirs))
    checked = design(
        cells(grid),
        study=str(grid.study.get("name") or "none"),
        skip_illegal=bool(grid.settings["skip_illegal"]),
    )
    return Request(grid, checked, Path(grid.settings["out"]), grid.settings)
