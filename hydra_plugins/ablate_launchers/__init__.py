"""Hydra's side of where cells run: `hydra/launcher=` local, gpus, slurm, ray and parsl.

Imports nothing of ablate or of an engine before a sweep starts: every Hydra program on the machine
imports every plugin.
"""

import importlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class LocalConf:
    """The settings of `Local`, of which Hydra checks the types."""

    _target_: str = "hydra_plugins.ablate_launchers.Local"
    n_jobs: int = 2


ConfigStore.instance().store(
    group="hydra/launcher", name="ablate_local", node=LocalConf, provider="ablate"
)


class BundleLauncher(Launcher):
    """Starts workers for the bundles of a sweep; runs jobs of nothing else."""

    elsewhere: bool  # whether workers may run on other machines than this one

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep nothing: workers compose no configuration."""

    def check(self) -> None:
        """Check that what it needs is installed, before anything is made.

        Raises:
            UserError: it is not.
        """

    @abstractmethod
    def start(self, bundles: Sequence[Path], workers: int) -> None:
        """Run bundle files by so many workers and return when these have ended."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        raise RuntimeError("this launcher runs sweeps of ablate only")


class Local(BundleLauncher):
    """Processes of this machine (`ablate.pool`)."""

    elsewhere = False

    def __init__(self, n_jobs: int) -> None:
        """Take `n_jobs`, which the sweep reads."""

    def start(self, bundles: Sequence[Path], workers: int) -> None:
        from ablate.pool import launch

        launch(bundles, workers)


class Gpus(Local):
    """The same, where there is a GPU."""

    def check(self) -> None:
        from ablate.errors import UserError
        from ablate.models.gpu_slots import gpus

        if not gpus():
            raise UserError(
                "hydra/launcher=gpus: there is no GPU here; local computes on the CPU too"
            )


class _Pilots(BundleLauncher):
    elsewhere = True
    engine: str

    def __init__(self, n_jobs: int, **settings: Any) -> None:
        self._settings = settings

    def check(self) -> None:
        importlib.import_module(f"ablate.pilots.{self.engine}").engine()

    def start(self, bundles: Sequence[Path], workers: int) -> None:
        from ablate.pilots.pilot import launch

        plain = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in self._settings.items()
        }
        launch(self.engine, bundles, workers, plain)


class Slurm(_Pilots):
    engine = "slurm"


class Ray(_Pilots):
    engine = "ray"


class Parsl(_Pilots):
    engine = "parsl"
