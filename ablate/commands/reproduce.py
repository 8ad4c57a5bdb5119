"""`ablate reproduce`: a paper's study, its figures beside the published numbers."""

import argparse

from ablate.commands.sweep import sweep
from ablate.commands.verb import CONFIG_DIR, OVERRIDES, RETRY_FAILED, Verb
from ablate.errors import UserError


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if not rest or "=" in rest[0]:
        raise UserError("ablate reproduce: name the study first, as in `ablate reproduce plw`")
    study, *overrides = rest
    scale = next((w.split("=", 1)[1] for w in overrides if w.startswith("scale=")), "micro")
    placed = any(word.startswith("out=") for word in overrides)
    out = [] if placed else [f"out=results/{study}_{scale}"]
    return sweep([f"study={study}", *out, *overrides], given)


VERB = Verb(
    name="reproduce",
    summary="a paper's study, its figures beside the published numbers",
    about=(
        "Carries out a paper's study (plw, uuid) and ends with its figures and verdicts. "
        "scale=smoke goes through every step in minutes, micro (the default) draws conclusions "
        "on the embedded models, paper is the study at its own size."
    ),
    words=f"STUDY {OVERRIDES}",
    options=(CONFIG_DIR, RETRY_FAILED),
    examples=(
        "ablate reproduce plw scale=smoke",
        "ablate reproduce plw",
        "ablate reproduce uuid out=results/uuid",
    ),
    run=_run,
)
