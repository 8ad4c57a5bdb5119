"""Adapter methods of other installed packages, by entry points of the group `ablate.adapters`.

    [project.entry-points."ablate.adapters"]
    my_method = "my_package.my_method:ROW"

The name is the method's `kind`, the value leads to its row (`method.Method`). They are looked for
when a level names a kind that is none of this project's, which cannot be replaced. No torch.
`analysis.report.plugged` reads its entry points alike; neither package may import the other.
"""

import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from ablate.adapters.method import Method
from ablate.errors import UserError
from ablate.results.files import sha256

GROUP = "ablate.adapters"


@lru_cache(maxsize=1)
def points() -> Mapping[str, EntryPoint]:
    """Return the entry points by the kind that they name."""
    return {point.name: point for point in entry_points(group=GROUP)}


@lru_cache
def row(kind: str) -> Method:
    """Return the row that an installed package has for `kind`, one of `points`.

    Raises:
        UserError: it cannot be imported, or is no row.
    """
    point = points()[kind]
    try:
        found = point.load()
    except Exception as error:  # whatever a module raises when it is imported
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"adapter.kind={kind}: {_where(point)} cannot be loaded ({reason})"
        ) from error
    if not isinstance(found, Method):
        raise UserError(
            f"adapter.kind={kind}: {_where(point)} is a {type(found).__name__}, must be an "
            "ablate.adapters.method.Method"
        )
    return found


def code(kind: str) -> str:
    """Return the SHA-256 of the file in which the row of `kind` stands: part of a run's identity.

    Raises:
        UserError: there is no such file.
    """
    point = points()[kind]
    spec = importlib.util.find_spec(point.module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"adapter.kind={kind}: {_where(point)} is not in a file")
    return sha256(spec.origin)


def _where(point: EntryPoint) -> str:
    package = f" of the package {point.dist.name}" if point.dist else ""
    return f"{point.value}{package}"
