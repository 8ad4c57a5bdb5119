"""The composed tree of a cell, put together from parts that Hydra composes once each.

Hydra needs 60 ms to compose one tree. A grid's trees share their parts, so every part (`masking`,
`train`, `plw`, ...) is composed once for each choice of level and values set inside it, with
Hydra's own repository, merge and parser, and a tree is put together from them. That is exact as
long as an option writes only into its own package; otherwise its cells are composed by Hydra in
full. A test compares the two ways on random cells.
"""

import contextlib
import copy
import dataclasses
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from ablate.config.build import plain, typed
from ablate.config.command import Command, Study
from ablate.config.overrides import key_of, normal, one_line_errors, parse, top_of
from ablate.config.parts import Interned, Part, Tree, flatten, named
from ablate.config.schema import Cell
from ablate.config.shipped import Base, is_plain, shared
from ablate.config.yaml_size import check_yaml_size
from ablate.errors import UserError, brief, nearest, unknown
from ablate.paths import check_file, conf_dir

MOST_JOBS = 4096  # workers
MOST_BYTES = 1_000_000  # of the file of a level
CELL_KEYS = tuple(field.name for field in dataclasses.fields(Cell))
# Launcher and sweeper say where cells run; the plain ones keep a plan free of plugins.
_PLAIN_HYDRA = ["hydra/launcher=basic", "hydra/sweeper=basic"]
SWEEPER = "hydra_plugins.ablate_sweeper.AblateSweeper"
PILOTS = {f"hydra_plugins.ablate_launchers.{name}" for name in ("Slurm", "Ray", "Parsl")}


def config_loader(config_dirs: Iterable[Path | str] = ()) -> ConfigLoader:
    """Return Hydra's loader for our configuration tree and the user's own folders."""
    version.setbase("1.3")
    path = create_config_search_path(str(conf_dir()))
    schema = path.get_path().pop(-1)  # Hydra wants its schemas last
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir={folder}: no such folder")
        _check_names(Path(folder))
        path.append("command-line", str(Path(folder).resolve()))
    path.get_path().append(schema)
    return ConfigLoaderImpl(path)


def _check_names(folder: Path) -> None:
    """Refuse levels that are called as shipped ones: Hydra would take the shipped ones.

    Those that cannot be read to an end are refused too: Hydra would read them.
    """
    for path in sorted(folder.glob("*/*.yaml")):
        name = path.relative_to(folder)
        place = f"{name.parent}={name.stem}: its file"
        check_file(place, path)
        with contextlib.suppress(OSError, ValueError):  # said where the level is chosen
            if (size := path.stat().st_size) > MOST_BYTES:
                raise UserError(f"{place}: has {size:,} bytes; at most {MOST_BYTES:,} are read")
            check_yaml_size(place, path.read_text(encoding="utf-8"))
        shipped = conf_dir() / name
        if shipped.is_file() and not path.samefile(shipped):
            raise UserError(
                f"--config-dir={folder}: {name} is the name of a shipped level, which would be "
                f"taken instead; give yours a name of its own"
            )


def _elsewhere(group: str, option: object) -> str:
    """Return the folder in the current one that has a level; "" where none has."""
    if not isinstance(option, str) or not re.fullmatch(r"\w+", option) or "/" in group:
        return ""
    return next((str(path.parents[1]) for path in Path().glob(f"*/{group}/{option}.yaml")), "")


def _check_search(line: str) -> None:
    """Check that folders of levels are there: Hydra warns of others, and goes on without them."""
    value = parse(line).value()
    for each in value if isinstance(value, list) else ():
        place = str(getattr(each, "text", each)).removeprefix("file://")
        if "://" not in place and not os.path.isdir(place):
            raise UserError(f"{line}: {place} is no folder")


@dataclass(frozen=True, slots=True)
class _Setting:
    """What one override line does to a cell."""

    line: str
    top: str  # the part of the tree it changes
    option: str | None  # the level it chooses, None where it sets a value
    apart: bool  # whether its effect is confined to that part


class Composer:
    """Composes cells part by part; parts are remembered."""

    def __init__(self, loader: ConfigLoader, lines: Iterable[str] = ()):
        """Compose the base tree; of the override `lines` those about the command are applied."""
        self._loader = loader
        self._settings: dict[str, _Setting] = {}
        self._parts: dict[tuple[str, str | None, tuple[str, ...]], Part | None] = {}
        self._interned = Interned()
        search = [line for line in lines if key_of(line) == "hydra.searchpath"]
        for line in search:
            _check_search(line)
        with one_line_errors():
            self._shared = shared(loader, search)
        self._repository = self._shared.repository
        mine = [line for line in lines if line not in search and self.is_about_command(line)]
        for line in mine:
            if parse(line).is_sweep_override():
                raise UserError(f"{line}: must be one value: it is about the whole command")
            if self.is_group(line):
                self._option_name(line)
        self._command_lines = [*_PLAIN_HYDRA, *search, *mine]
        if all(is_plain(line, group=self.is_group(line)) for line in mine):
            self._base = self._known_base(search, mine)
        else:
            self._base = self._new_base(search, mine)
            self._known = Base(self._base)

    def _known_base(self, search: list[str], mine: list[str]) -> DictConfig:
        """Return the base tree of this study, composed once, with the values of `mine` set."""
        groups = tuple(line for line in mine if self.is_group(line))
        if groups not in self._shared.bases:
            self._shared.bases[groups] = Base(self._compose([*_PLAIN_HYDRA, *search, *groups]))
        self._known = self._shared.bases[groups]
        self._base = self._known.tree
        if values := [line for line in mine if line not in groups]:
            base = copy.deepcopy(self._base)
            for line in values:
                self._apply(line, base)
            return base
        return self._base

    def _new_base(self, search: list[str], mine: list[str]) -> DictConfig:
        """Return the base tree as Hydra composes it."""
        try:
            return self._load([])
        except UserError:
            self._command_lines = [*_PLAIN_HYDRA, *search]
            self._base = self._load([])
            for line in mine:  # where one of them is at fault, it is named
                if not self.is_group(line):
                    self._apply(line, self._base)
            raise

    # -- what there is ------------------------------------------------------------------------

    def is_about_command(self, line: str) -> bool:
        """Return whether an override concerns the command (study, out, ...) and no cell."""
        top = top_of(key_of(line))
        with one_line_errors():
            root = self._repository.load_config("config")
        groups = [default.group for default in root.defaults_list if hasattr(default, "group")]
        return top not in CELL_KEYS and (top in root.config or top in groups)

    def is_group(self, line: str) -> bool:
        """Return whether an override chooses an option of a group, rather than sets a value."""
        override = parse(line)
        if isinstance(override.value(), dict):
            return False
        found: bool = self._repository.group_exists(override.key_or_group)
        return found

    def options(self, group: str) -> list[str]:
        """Return the names of the levels of `group`."""
        names: list[str] = self._repository.get_group_options(group)
        return names

    @cached_property
    def groups(self) -> dict[str, str]:
        """The groups of a cell and the option each has by default."""
        choices = self._base.hydra.runtime.choices
        return {str(g): str(o) for g, o in choices.items() if top_of(str(g)) in CELL_KEYS}

    @cached_property
    def study(self) -> Tree:
        """The study, resolved and checked; it is named after its file unless it has a name."""
        study: Any = self._resolved_keys(["study"]).get("study")
        if isinstance(study, dict):
            study = {"name": self._base.hydra.runtime.choices.get("study")} | study
        typed(Study, study, "study")
        return dict(study)

    @cached_property
    def command(self) -> Tree:
        """The settings of the command itself, resolved and checked: scale, out, ..."""
        outside = (*CELL_KEYS, "hydra", "study")
        keys = [str(k) for k in self._base if k not in outside]
        return dict(plain(typed(Command, self._resolved_keys(keys))))

    def _resolved_keys(self, keys: list[str]) -> Tree:
        with one_line_errors():
            found: Any = OmegaConf.to_container(
                OmegaConf.masked_copy(self._base, keys), resolve=True
            )
        return dict(found)

    def check_hydra(self, lines: list[str]) -> None:
        """Check overrides of Hydra's own settings, which say where the cells run.

        Raises:
            UserError: Hydra has no such setting or value, or they put another sweeper in.
        """
        if not lines:
            return
        for line in lines:
            if self.is_group(line):
                self._option_name(line)
        search = [line for line in self._command_lines if key_of(line) == "hydra.searchpath"]
        try:
            hydra = self._compose([*search, *lines]).hydra
        except UserError as error:
            if not str(error).startswith("Could not override 'hydra.launcher."):
                raise
            added = next(line for line in lines if key_of(line) in str(error)).lstrip("+")
            raise UserError(
                f"{str(error).rstrip('.')}: no such setting of this launcher, or a key in it is "
                f"new; what its engine takes besides is added by ++{added}"
            ) from error
        for name in ("sweeper", "launcher"):
            node = hydra.get(name)
            target = node.get("_target_") if isinstance(node, DictConfig) else None
            if not isinstance(target, str) or (name == "sweeper" and target != SWEEPER):
                raise UserError(
                    f"hydra.{name}={target or node}: cannot be replaced; where cells run is set by "
                    "hydra/launcher=NAME and hydra.launcher.*"
                )
        jobs, pilots = hydra.launcher.get("n_jobs"), str(hydra.launcher._target_) in PILOTS
        whole = jobs is None or (isinstance(jobs, int) and not isinstance(jobs, bool))
        if not whole or jobs == 0 or (pilots and (jobs or 0) < 1):
            every = "" if pilots else ", or -1 for all"
            raise UserError(f"hydra.launcher.n_jobs={jobs}: must be a number of workers{every}")
        if jobs is not None and abs(jobs) > MOST_JOBS:
            raise UserError(f"hydra.launcher.n_jobs={brief(jobs)}: must be at most {MOST_JOBS}")

    @cached_property
    def _cell_keys(self) -> dict[str, None]:
        return {str(key): None for key in self._base if key in CELL_KEYS}

    # -- cells --------------------------------------------------------------------------------

    def cell(self, lines: Iterable[str]) -> dict[str, Part]:
        """Return the parts of the cell that the override `lines` describe.

        Raises:
            UserError: an unknown group, option or key, or a value that Hydra cannot set.
        """
        choices, values = dict(self.groups), dict[str, list[str]]()
        for setting in map(self._setting, lines):
            if not setting.apart:
                return self._cell_in_full(lines)
            if setting.option is None:
                values.setdefault(setting.top, []).append(setting.line)
            else:
                choices[setting.top] = setting.option
        parts = {}
        for name in self._cell_keys | dict.fromkeys(values):
            part = self._part(name, choices.get(name), tuple(values.get(name, ())))
            if part is None:
                return self._cell_in_full(lines)
            parts[name] = part
        return self._resolved(parts)

    def _setting(self, line: str) -> _Setting:
        if line not in self._settings:
            override = parse(line)
            key, top = override.key_or_group, top_of(override.key_or_group)
            if not self.is_group(line):
                setting = _Setting(line, top, None, apart=override.package is None)
            elif isinstance(value := override.value(), list):
                raise unknown(key, value, self.options(key))
            elif line.startswith(("+", "~")) or override.package or key not in self.groups:
                setting = _Setting(line, top, None, apart=False)
            else:
                setting = _Setting(line, top, self._option_name(line), apart=True)
            self._settings[line] = setting
        return self._settings[line]

    def _option_name(self, line: str) -> str:
        group, option = key_of(line), parse(line).value()
        if isinstance(option, list) or not self._repository.config_exists(f"{group}/{option}"):
            if found := _elsewhere(group, option):
                raise UserError(
                    f"{group}={option}: no such level here; --config-dir={found} has it"
                )
            raise unknown(group, "null" if option is None else option, self.options(group))
        try:
            with one_line_errors():
                file = self._repository.load_config(f"{group}/{option}")
        except UserError as error:
            raise UserError(f"{group}={option}: {error}") from error
        if not isinstance(file.config, DictConfig):
            raise UserError(f"{group}={option}: its file must be a table of settings, not a list")
        return str(option)

    # -- parts --------------------------------------------------------------------------------

    def _part(self, name: str, option: str | None, lines: tuple[str, ...]) -> Part | None:
        """Return one part, or None where it cannot be composed apart from the others."""
        key = (name, option, lines)
        if key not in self._parts:
            self._parts[key] = self._compose_part(name, option, lines)
        return self._parts[key]

    def _compose_part(self, name: str, option: str | None, lines: tuple[str, ...]) -> Part | None:
        node = self._base.get(name) if option is None else self._option(name, option)
        if node is None and option is not None:
            return None
        key = (name, option)
        if not lines and key in self._known.plain:
            return self._interned.part(name, self._known.plain[key])
        tree = OmegaConf.create({name: node} if name in self._base else {})
        OmegaConf.set_struct(tree, True)
        for line in lines:
            self._apply(line, tree)
        with one_line_errors():
            plain: Any = OmegaConf.to_container(tree, resolve=False)
        if name not in plain:  # ~key took it away; `config.build` says what is missing
            return None
        value = named(name, plain[name], option, lines)
        if not lines:
            self._known.plain[key] = value
        return self._interned.part(name, value)

    def _apply(self, line: str, tree: DictConfig) -> None:
        """Set one value in `tree` as Hydra does."""
        try:
            with one_line_errors():
                ConfigLoaderImpl._apply_overrides_to_config([parse(normal(line))], tree)
        except UserError as error:
            cause = error.__cause__
            nested = cause.__cause__ if isinstance(cause, HydraException) else None
            if isinstance(nested, ConfigKeyError | ConfigAttributeError):
                raise self._unknown_key(line) from error
            raise UserError(f"{line}: {error}") from error

    def _unknown_key(self, line: str) -> UserError:
        key = parse(line).key_or_group
        known = sorted({*flatten(self._base), *self.groups})
        parent = OmegaConf.select(self._base, key.rpartition(".")[0] or "plw")
        if isinstance(parent, DictConfig) and not len(parent):  # a table that users may fill
            return UserError(f"{line}: no such setting. To add it write +{line}")
        return UserError(f"{line}: no such setting.{nearest(key, known)}")

    def _option(self, group: str, option: str) -> DictConfig | None:
        """Return what an option makes of its group, or None if it also writes elsewhere."""
        key = (group, option)
        if key not in self._known.options:
            node = self._own_package(group, option) or self._composed_package(group, option)
            self._known.options[key] = node
        return self._known.options[key]

    def _own_package(self, group: str, option: str) -> DictConfig | None:
        """Return the group's defaults under the option's file, where that is all there is to it."""
        with one_line_errors():
            file = self._repository.load_config(f"{group}/{option}")
            if file.config.get("name", option) != option:
                raise UserError(
                    f"{group}={option}: its file says name: {file.config.name}, but a level is "
                    "named after its file; leave that line out"
                )
            plain = not file.defaults_list and file.header.get("package") is None
            if not plain or "/" in option:
                return None
            defaults = self._repository.load_config("config").config.get(group, {})
            merged = OmegaConf.merge(OmegaConf.create(defaults), file.config)
        assert isinstance(merged, DictConfig)
        return merged

    def _composed_package(self, group: str, option: str) -> DictConfig | None:
        """Return the group as Hydra composes it, unless another part changes with it."""
        composed = self._load([f"{group}={option}"])
        alike = all(composed.get(k) == self._base.get(k) for k in self._cell_keys if k != group)
        return composed.get(group) if alike and set(composed) == set(self._base) else None

    # -- all at once --------------------------------------------------------------------------

    def _cell_in_full(self, lines: Iterable[str]) -> dict[str, Part]:
        with one_line_errors():
            tree: Any = OmegaConf.to_container(self._load(lines), resolve=False)
        chosen = {name: tree["hydra"]["runtime"]["choices"].get(name) for name in tree}
        return self._resolved(
            {
                name: self._interned.part(name, named(name, value, chosen[name], lines))
                for name, value in tree.items()
                if name in CELL_KEYS or name not in self._base
            }
        )

    def _load(self, lines: Iterable[str]) -> DictConfig:
        return self._compose([*self._command_lines, *lines])

    def _compose(self, lines: list[str]) -> DictConfig:
        with one_line_errors():
            composed: DictConfig = self._loader.load_configuration(
                "config", overrides=list(map(normal, lines)), run_mode=RunMode.RUN
            )
        return composed

    def _resolved(self, parts: dict[str, Part]) -> dict[str, Part]:
        """Return the parts with references between settings of the cell filled in."""
        if not any(part.interpolated for part in parts.values()):
            return parts
        with one_line_errors():
            tree = OmegaConf.create({name: part.value for name, part in parts.items()})
            plain: Any = OmegaConf.to_container(tree, resolve=True)
        return {name: self._interned.part(name, value) for name, value in plain.items()}
