"""`ablate doctor`: what is here, what is missing, and what will be slow and why."""

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ablate.commands.verb import WIDTH, Flag, Verb
from ablate.errors import UserError

if TYPE_CHECKING:
    from ablate.commands.doctor_checks import Finding

SIGNS = {"ok": " ", "absent": "-", "slow": "~", "fault": "!"}
NAMES = 18  # characters of the names of findings


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.commands.doctor_checks import findings, verdict

    if rest:
        raise UserError(f"doctor: takes no words, not {' '.join(rest)}")
    found = findings()
    failed = any(each.state == "fault" for each in found)
    if given.json:
        print(json.dumps([asdict(each) for each in found], indent=1))
    else:
        print(*lines(found), "", verdict(found), sep="\n")
    return 1 if failed else 0


def lines(found: "Sequence[Finding]") -> list[str]:
    """Return findings as a page of text: `!` is to be mended, `~` is slow, `-` is absent."""
    page: list[str] = []
    for part in dict.fromkeys(each.part for each in found):
        page += [""] * bool(page) + [part]
        for each in (each for each in found if each.part == part):
            head = f"{SIGNS[each.state]} {each.name:<{NAMES}} "
            page += _wrapped(each.told, head)
            page += _wrapped(each.advice, " " * len(head)) if each.advice else []
    return page


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


VERB = Verb(
    name="doctor",
    summary="what is installed and found here, what is missing, what will be slow and why",
    about=(
        "Looks at packages against what is required, GPUs with their precisions and kernels, "
        "cores, memory, folders and caches, the hub (for two seconds), the sandbox, and optional "
        "packages with the command that installs them. `!` is to be mended, `~` is slow, `-` is "
        "absent. Trains and downloads nothing. Exit status 1 where something is to be mended."
    ),
    words="",
    options=(Flag("--json", "the same as JSON"),),
    examples=(
        "ablate doctor",
        "ablate doctor --json",
        "ablate doctor    # after `export HF_HUB_OFFLINE=1`: without asking the hub",
    ),
    run=_run,
)
