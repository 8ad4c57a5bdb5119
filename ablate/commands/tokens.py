"""`ablate tokens`: examples as the loss sees them, on the terminal or as a page."""

import argparse
import os
from pathlib import Path

from ablate.commands.verb import CONFIG_DIR, OVERRIDES, Flag, Verb, folders, whole
from ablate.errors import UserError
from ablate.paths import check_folder, check_name
from ablate.terminal import CONSOLE

ROWS = 3
UNSCORED = ("evaluate=none", "evaluate.heldout=[]")


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.commands.token_page import html
    from ablate.commands.token_text import preview
    from ablate.data.rows import FEW
    from ablate.experiment.known import Here
    from ablate.experiment.request import plan_grid

    if given.html:
        _check_file(Path(given.html))
    # Nothing is scored: rows too few for a test part are shown too. The first cell of a design is
    # the untouched base.
    request = plan_grid(
        [*rest, *UNSCORED, "single=true"], config_dirs=folders(given), known=Here(FEW)
    )
    cell = request.design.cells[-1].cell
    if given.html:
        Path(given.html).write_text(html(cell, given.rows))
        CONSOLE.print(f"wrote {given.html}")
        return 0
    for part in preview(cell, given.rows):
        CONSOLE.print(part)
    return 0


def _check_file(page: Path) -> None:
    check_name("--html", page)
    if (os.path.lexists(page) and not page.is_file()) or not page.parent.is_dir():
        raise UserError(f"--html={page}: must be a file in a folder that is there")
    check_folder("--html", page.parent)


VERB = Verb(
    name="tokens",
    summary="show examples as the loss sees them: each token's role and weight",
    about=(
        "Shows training rows of a cell token by token, coloured by role, with the weight that "
        "the loss gives to each, and the share of every role over the training part. Of a long "
        "data set the first 20,000 records are enough, unless a plan or a run has read it all."
    ),
    words=OVERRIDES,
    options=(
        CONFIG_DIR,
        Flag("--rows", f"how many rows to show (default {ROWS})", "N", whole, default=ROWS),
        Flag("--html", "write a page instead", "FILE"),
    ),
    examples=(
        "ablate tokens masking=none plw=0.1",
        "ablate tokens dataset=local dataset.path=chat.jsonl dataset.template=chat --rows 5",
        "ablate tokens masking=special plw=1 --html tokens.html",
    ),
    run=_run,
    settings=(
        "masking", "plw", "dataset", "dataset.path", "dataset.template=...", "dataset.format=...",
        "dataset.columns", "dataset.turns", "dataset.system", "model", "model.path",
        "train.max_length", "train.boundary", "loss.token_rule",
    ),
)  # fmt: skip
