"""`ablate run`: trains and scores one cell."""

import argparse

from ablate.commands.sweep import QUESTIONS, answered, sweep
from ablate.commands.verb import CONFIG_DIR, GRID, OVERRIDES, RETRY_FAILED, Verb
from ablate.errors import UserError


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.config.overrides import key_of

    status = answered(rest, given)
    if status is not None:
        return status
    for line in rest:
        if key_of(line).replace("/", ".").startswith("hydra.launcher"):
            raise UserError(
                f"{line}: ablate run computes its one cell in this process, without a launcher; "
                "ablate sweep takes one"
            )
    return sweep(["hydra/launcher=basic", "single=true", *rest], given)


VERB = Verb(
    name="run",
    summary="train and score one cell",
    about="Trains one cell, scores it and the untouched base model, and records both.",
    words=OVERRIDES,
    options=(CONFIG_DIR, RETRY_FAILED, *QUESTIONS),
    examples=(
        "ablate run masking=none plw=0.1",
        "ablate run adapter=mora rank=8 seed=1 out=results/one",
        "ablate run dataset=local dataset.path=chat.jsonl dataset.template=chat train.lr=1e-4",
    ),
    run=_run,
    settings=(*GRID, "tracker"),
)
