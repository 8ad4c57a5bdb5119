"""Questions of other installed packages, by entry points of the group `ablate.questions`.

    [project.entry-points."ablate.questions"]
    my-question = "my_package.my_question"

The name is the key of the section, the value a module with `section(study)`, which returns a
`page.Section` or None, and perhaps `headlines(study)`, lines of the first screen. They follow the
sections of this project. `ablate.adapters.plugged` reads its entry points alike; neither package
may import the other.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from analysis.errors import AnalysisError
from analysis.regression.study import Study
from analysis.report.headline import Headline
from analysis.report.page import Section

GROUP = "ablate.questions"


@lru_cache(maxsize=1)
def points() -> tuple[EntryPoint, ...]:
    """Return the entry points in the order of their names."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda point: point.name))


def section(point: EntryPoint, study: Study) -> Section | None:
    """Return the section of a question; None where it has nothing to say of this study.

    Raises:
        AnalysisError: it cannot be loaded or fails, or returns something else.
    """
    found = _asked(point, "section", study)
    if found is None or (isinstance(found, Section) and found.key == point.name):
        return found
    is_other = f"a section of the key {found.key!r}" if isinstance(found, Section) else repr(found)
    raise AnalysisError(f"question={point.name}: {_where(point)} returned {is_other}, must be None "
                        f"or a Section of the key {point.name!r}")  # fmt: skip


def headlines(point: EntryPoint, study: Study) -> list[Headline]:
    """Return what a question adds to the first screen.

    Raises:
        AnalysisError: it cannot be loaded or fails.
    """
    found = _asked(point, "headlines", study)
    return [] if found is None else list(found)


def _asked(point: EntryPoint, name: str, study: Study) -> Any:
    try:
        module = point.load()
        function: Callable[[Study], Any] | None = getattr(module, name, None)
        if function is None and name == "section":
            raise AttributeError(f"has no function {name}")
        return None if function is None else function(study)
    except Exception as error:  # whatever code from elsewhere raises
        reason = f"{type(error).__name__}: {error}"
        raise AnalysisError(f"question={point.name}: {_where(point)} failed ({reason})") from error


def _where(point: EntryPoint) -> str:
    package = f" of the package {point.dist.name}" if point.dist else ""
    return f"{point.value}{package}"
