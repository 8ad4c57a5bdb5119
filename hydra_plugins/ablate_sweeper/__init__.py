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
JOBS, DEFAULT = "hydra.launcher.n_jobs=", "local"


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

        if check := getattr(self.launcher, "check", None):  # one of ours
            check()
        return sweep_grid(
            arguments,
            self._launch,
            workers=self._workers(),
            loader=self.loader,
            elsewhere=getattr(self.launcher, "elsewhere", False),
        )

    def _workers(self) -> int | None:
        """Return the launcher's n_jobs, 1 of one that has none; None where the user set none."""
        jobs = OmegaConf.select(self.config, "hydra.launcher.n_jobs")
        if not isinstance(jobs, int):
            return 1
        hydra = self.config.hydra
        given = any(line.lstrip("+").startswith(JOBS) for line in hydra.overrides.hydra)
        chosen = hydra.runtime.choices.get("hydra/launcher")
        return None if chosen == DEFAULT and not given else jobs

    def _launch(self, bundles: Sequence[Path], workers: int) -> None:
        from ablate.config.overrides import spell
        from ablate.errors import Halted

        if start := getattr(self.launcher, "start", None):  # one of ours
            start(bundles, workers)
            return
        if isinstance(kept := getattr(self.launcher, "joblib", None), dict):
            kept["n_jobs"] = workers
        jobs = [[f"bundle={spell(path)}", f"out={spell(path.parent.parent)}"] for path in bundles]
        # Return values are not read: that would raise any job's error, and workers record errors.
        for job in self.launcher.launch(jobs, initial_job_idx=0) or ():
            if isinstance(error := getattr(job, "_return_value", None), Halted):
                raise error
