"""Which experiment trackers a sweep asks for, and whether they are installed. No torch."""

import contextlib
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ablate.errors import UserError

FOLDER = "tracking"  # under the results: what trackers write to files
UNREACHED = ".unreached-"  # and a tracker's name: the file that says when it could not be opened
PROJECT = "ablate"
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}  # where the name is not the tracker's


@dataclass(frozen=True, slots=True)
class Trackers:
    """Trackers, and what runs are filed under there."""

    kinds: tuple[str, ...] = ()
    project: str = PROJECT
    study: str = "none"
    folder: str = ""

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def trackers(settings: Mapping[str, Any], *, study: str, out: Path) -> Trackers:
    """Return the trackers that the settings of a command ask for; each is to be tried anew.

    Raises:
        UserError: the package of one is not installed.
    """
    given = settings["tracker"]
    kinds = tuple(dict.fromkeys([given] if isinstance(given, str) else given))
    kinds = () if kinds == ("none",) else kinds
    for kind in kinds:
        if not any(map(importlib.util.find_spec, PACKAGES.get(kind, (kind,)))):
            raise UserError(
                f"tracker={kind}: the package {kind} is not installed; "
                "pip install 'ablate[trackers]', or that package alone"
            )
    folder = (out / FOLDER).resolve()
    for kind in kinds:
        with contextlib.suppress(OSError):
            (folder / f"{UNREACHED}{kind}").unlink(missing_ok=True)
    return Trackers(kinds, settings["tracker_project"] or PROJECT, study, str(folder))
