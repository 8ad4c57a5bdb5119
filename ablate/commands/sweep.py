"""`ablate sweep`: carries out a grid."""

import argparse
from collections.abc import Sequence

from ablate.commands.verb import CONFIG_DIR, GRID, OVERRIDES, RETRY_FAILED, Flag, Verb, folders
from ablate.errors import UserError

# Questions about the composed configuration, which Hydra answers.
CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
QUESTIONS = (
    Flag("--cfg", "print every setting; job (default), hydra, all", "PART", str, CFG, bare="job"),
    Flag("--info", "print how it is composed: all (default), ...", "PART", str, INFO, bare="all"),
    Flag("--hydra-help", "print the help of Hydra itself"),
)


def sweep(overrides: Sequence[str], given: argparse.Namespace) -> int:
    """Carry out the grid of Hydra `overrides` and return the exit status.

    Args:
        overrides: in Hydra's grammar.
        given: the values of `CONFIG_DIR` and `RETRY_FAILED`.

    Raises:
        UserError: a setting of the command is wrong, or stands beside the option of that name.
    """
    return _application(["-m"], retried(overrides, given), given)


def retried(overrides: Sequence[str], given: argparse.Namespace) -> list[str]:
    """Return Hydra overrides that say what `RETRY_FAILED` does.

    Raises:
        UserError: the setting stands beside the option.
    """
    if not given.retry_failed:
        return list(overrides)
    from ablate.config.overrides import key_of

    for line in overrides:
        if key_of(line) == "retry_failed":
            raise UserError(f"{line}: is given twice: --retry-failed says retry_failed=true")
    return [*overrides, "retry_failed=true"]


def answered(overrides: Sequence[str], given: argparse.Namespace) -> int | None:
    """Return the exit status of the one of `QUESTIONS` that was asked; None where none was.

    Raises:
        UserError: several were.
    """
    asked = [f"--{name}={value}" for name in ("cfg", "info") if (value := getattr(given, name))]
    asked += ["--hydra-help"] * given.hydra_help
    if len(asked) > 1:
        raise UserError(f"{asked[1]}: cannot be asked together with {asked[0]}")
    return _application(asked, overrides, given) if asked else None


def _application(flags: Sequence[str], overrides: Sequence[str], given: argparse.Namespace) -> int:
    """Return the exit status of the Hydra application; the command's own settings are checked."""
    from ablate import app
    from ablate.config.compose import command
    from ablate.config.composer import config_loader

    command(overrides, loader=config_loader(folders(given)))
    own = [f"--config-dir={folder}" for folder in folders(given)]
    return app.main([*flags, *own, *overrides])


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    status = answered(rest, given)
    return sweep(rest, given) if status is None else status


VERB = Verb(
    name="sweep",
    summary="carry out a grid; resumes, survives failures, ends with table and report",
    about=(
        "Trains and scores every distinct cell of a grid that is not recorded yet, then writes "
        "the table and the report. Stop it at any moment: the same command goes on."
    ),
    words=OVERRIDES,
    options=(CONFIG_DIR, RETRY_FAILED, *QUESTIONS),
    examples=(
        "ablate sweep study=quick out=results/quick",
        "ablate sweep masking=instruction,none plw=0,0.1,1 seed=0,1 out=results/mine",
        "ablate sweep --cfg job    # prints every setting",
    ),
    run=_run,
    settings=(*GRID, "tracker"),
)
