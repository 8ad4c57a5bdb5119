"""What composers of the shipped settings share in a process: their files do not change in it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from ablate.config.overrides import parse
from ablate.paths import conf_dir

_STUDY = re.compile(r"study=[A-Za-z0-9_]+")  # a line that chooses a study, and does nothing else
_HYDRAS = {"pkg://hydra.conf", "structured://"}  # where Hydra looks for its own settings


@dataclass(frozen=True, slots=True)
class Base:
    """A composed base tree, which nobody changes, and what was made of its groups' levels."""

    tree: DictConfig
    options: dict[tuple[str, str], DictConfig | None] = field(default_factory=dict)
    plain: dict[tuple[str, str | None], Any] = field(default_factory=dict)  # of unchanged parts


@dataclass(frozen=True, slots=True)
class Shared:
    """What was composed from one search path."""

    repository: CachingConfigRepository
    bases: dict[tuple[str, ...], Base] = field(default_factory=dict)  # by the lines of groups


_SHARED: dict[str, Shared] = {}  # by the folder of the shipped settings


def shared(loader: ConfigLoader, lines: Sequence[str]) -> Shared:
    """Return what the composers of `loader` share; a new one where users' own files are searched.

    Args:
        loader: Hydra's.
        lines: the overrides of `hydra.searchpath`.
    """
    folder = str(conf_dir())
    paths = {str(entry.path) for entry in loader.get_search_path().get_path()}
    if lines or not paths <= {*_HYDRAS, folder, f"file://{folder}"}:
        return Shared(_repository(loader, lines))
    if folder not in _SHARED:
        _SHARED[folder] = Shared(_repository(loader, lines))
    return _SHARED[folder]


def _repository(loader: Any, lines: Sequence[str]) -> CachingConfigRepository:
    _, repository = loader._parse_overrides_and_create_caching_repo("config", list(lines))
    assert isinstance(repository, CachingConfigRepository)
    return repository


def is_plain(line: str, *, group: bool) -> bool:
    """Return whether a line about the command has the same effect set in a composed base tree."""
    if group:
        return _STUDY.fullmatch(line) is not None
    return "$" not in line and parse(line).package is None
