"""`ablate sweep`: carries out a grid."""

import argparse
from collections.abc import Sequence

from ablate.commands.verb import CONFIG_DIR, OVERRIDES, RETRY_FAILED, Verb


def sweep(overrides: Sequence[str], given: argparse.Namespace) -> int:
    """Carry out the grid of Hydra `overrides` and return the exit status.

    Args:
        overrides: in Hydra's grammar.
        given: the values of `CONFIG_DIR` and `RETRY_FAILED`.
    """
    from ablate import app

    options = ["--config-dir", given.config_dir] if given.config_dir else []
    retry = ["retry_failed=true"] if given.retry_failed else []
    return app.main(["-m", *options, *overrides, *retry])


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    return sweep(rest, given)


VERB = Verb(
    name="sweep",
    summary="carry out a grid; resumes, survives failures, ends with table and report",
    about=(
        "Trains and scores every distinct cell of a grid that is not recorded yet, then writes "
        "the table and the report. Stop it at any moment: the same command goes on."
    ),
    words=OVERRIDES,
    options=(CONFIG_DIR, RETRY_FAILED),
    examples=(
        "ablate sweep study=quick out=results/quick",
        "ablate sweep masking=instruction,none plw=0,0.1,1 seed=0,1 out=results/mine",
        "ablate sweep --cfg job    # every setting, printed by Hydra; so are --info, --hydra-help",
    ),
    run=_run,
    hydra=True,
)
