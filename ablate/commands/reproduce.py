"""`ablate reproduce`: a study of the list, its figures beside the published numbers."""

import argparse

from ablate.commands.sweep import sweep
from ablate.commands.verb import CONFIG_DIR, OVERRIDES, RETRY_FAILED, Verb
from ablate.errors import UserError


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if not rest or "=" in rest[0]:
        raise UserError("reproduce: name the study first, as in `ablate reproduce plw`")
    from ablate.config.overrides import key_of, parse

    study, *overrides = rest
    set_by = {key_of(word): word for word in overrides}  # the last one counts
    if "study" in set_by:
        raise UserError(f"{set_by['study']}: the study is named first, as {study}; leave this out")
    scale = parse(set_by["scale"]).value() if "scale" in set_by else "micro"
    out = [] if "out" in set_by else [f"out=results/{study}_{scale}"]
    return sweep([f"study={study}", *out, *overrides], given)


VERB = Verb(
    name="reproduce",
    summary="a study of the list, its figures beside the published numbers",
    about=(
        "Carries out a study and ends with its figures and verdicts: plw, uuid, mora, "
        "instruction_modelling, lora_tradeoffs and wit are papers'; "
        "adapters, when_to_mask, confounds and token_rules are of no paper. "
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
    settings=(
        "scale",
        "out=results/STUDY_SCALE",
        "seed",
        "report",
        "stop_after",
        "cell_minutes",
    ),
)
