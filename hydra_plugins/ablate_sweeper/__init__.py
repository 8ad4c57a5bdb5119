"""Hydra's side of a sweep: `ablate -m` hands its grid to `ablate.sweep` and a launcher.

Imports no torch, and nothing of ablate before a sweep starts: every Hydra program on the machine
imports every plugin.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

ConfigStore.instance().store(
    group="hydra/sweeper",
    name="ablate",
    node={"_target_": "hydra_plugins.ablate_sweeper.AblateSweeper"},
    provider="ablate",
)


class AblateSweeper(Sweeper):
    """Turns a grid into bundles of the runs that are still missing, for any launcher."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config
        self.loader = hydra_context.config_loader  # knows the user's own folders of levels
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from ablate.app import sweep_grid

        return sweep_grid(arguments, self._launch, workers=self._workers(), loader=self.loader)

    def _workers(self) -> int:
        jobs = OmegaConf.select(self.config, "hydra.launcher.n_jobs")
        return int(jobs) if isinstance(jobs, int) and jobs > 0 else 1

    def _launch(self, bundles: Sequence[Path]) -> None:
        from ablate.config.overrides import spell

        jobs = [[f"bundle={spell(path)}", f"out={spell(path.parent.parent)}"] for path in bundles]
        # Return values are not read: that would raise the job's error, and workers record errors.
        self.launcher.launch(jobs, initial_job_idx=0)
