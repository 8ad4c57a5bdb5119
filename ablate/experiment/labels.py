"""Names by which a reader tells the levels of a grid apart: `local` alone names no model."""

from collections.abc import Iterable
from pathlib import Path

from ablate.config.build import plain
from ablate.config.schema import Adapter, Dataset, Model, Placement
from ablate.results.record import flattened

Part = Adapter | Dataset | Model | Placement
SILENT = ("name", "published", "shape")  # settings that tell nobody what a part is


def label(part: Part) -> str:
    """Return the name of one part; of what `local` and `hub` read, the file, folder or hub id."""
    if isinstance(part, Dataset | Model) and part.name == part.source != "micro":
        return Path(part.path).name or part.path if part.source == "local" else part.path
    return part.name


class Names:
    """The labels of the parts of a grid: parts that share a name also say what differs."""

    def __init__(self, parts: Iterable[Part]) -> None:
        """Name all `parts`, equal ones once."""
        distinct = {repr(part): part for part in parts}
        alike: dict[tuple[type, str], list[str]] = {}
        for mark, part in distinct.items():
            alike.setdefault((type(part), label(part)), []).append(mark)
        self._labels: dict[str, str] = {}
        for (_, name), marks in alike.items():
            further = _differences([distinct[mark] for mark in marks])
            for mark, settings in zip(marks, further, strict=True):
                self._labels[mark] = f"{name} ({settings})" if settings else name

    def __getitem__(self, part: Part) -> str:
        """Return the label of one of the parts."""
        return self._labels[repr(part)]


def _differences(parts: list[Part]) -> list[str]:
    """Return, for each of the parts of one name, its settings that are not the same in all."""
    settings = [{k: v for k, v in flattened(plain(p)).items() if k not in SILENT} for p in parts]
    names = dict.fromkeys(name for own in settings for name in own)
    differ = [n for n in names if len({repr(own.get(n)) for own in settings}) > 1]
    return [
        ", ".join(f"{n}={'null' if own.get(n) is None else own[n]}" for n in differ)
        for own in settings
    ]
