"""The Hydra application: `python -m ablate` and, with the verbs in front of it, `ablate`.

Two doors, one path: `ablate sweep X` is `python -m ablate -m X`.
"""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ablate.config.compose import explained, one_line
from ablate.errors import UserError
from ablate.paths import conf_dir


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def application(tree: DictConfig) -> None:
    """Work through a bundle of cells, as a launched job, or run the one cell composed here."""
    from pathlib import Path

    from ablate.sweep import work

    if tree.bundle is not None:
        work(Path(tree.bundle))
        return
    from ablate.cli import sweep_grid

    sweep_grid(list(HydraConfig.get().overrides.task), lambda bundles: list(map(work, bundles)))


def main(arguments: list[str]) -> int:
    """Run the application on Hydra's `arguments` and return the exit status."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us; we say them in one line
    sys.argv = ["ablate", *(normal(a) for a in arguments)]
    try:
        application()
    except UserError as error:
        return refuse(error)
    except (HydraException, OmegaConfBaseException) as error:
        return refuse(explained(error, sys.argv[1:]))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    return 0


def normal(argument: str) -> str:
    """Return `+study=plw` as `study=plw`: the group has a default, so Hydra would refuse the +."""
    return argument[1:] if argument.startswith(("+study=", "+scale=")) else argument


def refuse(error: Exception) -> int:
    """Print a fault of the request as one line and return exit status 2."""
    print(f"ablate: {one_line(error)}", file=sys.stderr)
    return 2
