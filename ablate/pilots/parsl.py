"""Pilots on Parsl's HighThroughputExecutor: blocks of Slurm, PBS, Kubernetes or this machine."""

import concurrent.futures
import os
import sys
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.pilots.pilot import imported

PROVIDERS = {
    "local": "LocalProvider",
    "slurm": "SlurmProvider",
    "pbs": "PBSProProvider",
    "kubernetes": "KubernetesProvider",
}


def engine() -> Any:
    """Return the module parsl; see `imported`."""
    return imported("parsl", extra="parsl")


def run(order: Path, count: int, settings: dict[str, Any]) -> None:
    """Start `count` pilots and return when all have ended.

    Args:
        order: the list of bundles.
        count: of pilots.
        settings: `provider`, a name of `PROVIDERS`; `blocks`, the arguments of that provider;
            `executor`, further arguments of `HighThroughputExecutor`.

    Raises:
        UserError: Parsl is not installed, or it knows no such provider or argument.
    """
    parsl = engine()
    name = settings["provider"]
    if name not in PROVIDERS:
        raise UserError(
            f"hydra.launcher.provider={name}: must be one of {', '.join(sorted(PROVIDERS))}"
        )
    folder = order.parent.parent / "parsl"
    # Parsl starts its programs by name; they are beside the interpreter, in an environment or not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        provider = getattr(parsl.providers, PROVIDERS[name])(**(settings["blocks"] or {}))
        executor = parsl.executors.HighThroughputExecutor(
            label="ablate", provider=provider, **(settings["executor"] or {})
        )
        config = parsl.Config(executors=[executor], run_dir=str(folder), retries=0)
    except (TypeError, ValueError) as error:
        raise UserError(f"hydra.launcher: {' '.join(str(error).split())}") from None
    with parsl.load(config):
        app = parsl.python_app(_pilot)
        left = [app(str(order), number, count) for number in range(count)]
        for one in concurrent.futures.as_completed(left):
            if lost := one.exception():
                print(f"a pilot was lost ({type(lost).__name__})", file=sys.stderr, flush=True)


def _pilot(order: str, number: int, count: int) -> int:
    from ablate.pilots.pilot import Pilot

    return Pilot()(order, number, count)
