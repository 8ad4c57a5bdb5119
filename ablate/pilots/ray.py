"""Pilots on Ray: tasks of a cluster that exists (`address`) or that is started for this sweep."""

import socket
import sys
from pathlib import Path
from typing import Any

from ablate.errors import UserError
from ablate.pilots.pilot import Pilot, imported

CONNECT_SECONDS = 10.0


def engine() -> Any:
    """Return the module ray; see `imported`."""
    return imported("ray", extra="ray")


def run(order: Path, count: int, settings: dict[str, Any]) -> None:
    """Start `count` pilots and return when all have ended.

    Args:
        order: the list of bundles.
        count: of pilots.
        settings: `address` of a cluster, `auto` for the one that this machine belongs to, None to
            start one; `num_cpus` and `num_gpus` of a pilot; `init`, more arguments of `ray.init`.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    ray = engine()
    address = settings["address"]
    try:
        _check_address(address)
        # Whoever reaches a dashboard may run code; a cluster of a sweep's own needs none.
        own = {} if address else {"include_dashboard": False}
        given = own | dict(settings["init"] or {})
        ray.init(address=address or "local", log_to_driver=True, **given)
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"hydra.launcher.address={address}: {text}") from None
    pilot = ray.remote(_pilot).options(
        num_cpus=settings["num_cpus"], num_gpus=settings["num_gpus"], max_retries=0
    )
    left = [pilot.remote(str(order), number, count) for number in range(count)]
    try:
        while left:
            ended, left = ray.wait(left, timeout=1.0)
            for one in ended:
                _tell(ray, one)
    except BaseException:
        for one in left:
            ray.cancel(one)
        ray.wait(left, num_returns=len(left), timeout=30.0)
        raise
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray itself tries for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _pilot(order: str, number: int, count: int) -> int:
    return Pilot()(order, number, count)


def _tell(ray: Any, ended: Any) -> None:
    """Say why a pilot ended early; its runs are missing still and are launched again."""
    try:
        ray.get(ended)
    except ray.exceptions.RayError as error:
        print(f"a pilot was lost ({type(error).__name__})", file=sys.stderr, flush=True)
