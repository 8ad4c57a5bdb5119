"""`ablate decide`: whether one change is kept, by a rule that was fixed before."""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.commands.sweep import sweep
from ablate.commands.verb import (
    GRID,
    OVERRIDES,
    RETRY_FAILED,
    Flag,
    Verb,
    above_0,
    error_rate,
    folders,
    whole,
    wholes,
)
from ablate.errors import UserError
from ablate.terminal import CONSOLE, paragraph

if TYPE_CHECKING:
    from ablate.commands.decide_settings import Settings

MOST_SEEDS = 100  # of a decision
OF_THE_RULE = ("seed", "study", "scale")  # settings that no one gives here
SETTINGS = (
    "margin", "miss", "max_seeds", "looks", "alpha", "decisions", "campaign_seeds", "fresh", "anew",
    "retry_failed",
)  # fmt: skip


def decide(
    base: str,
    candidate: str,
    common: Sequence[str],
    settings: "Settings",
    *,
    score: str = "benchmarks",
    config_dir: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Return what came of comparing a candidate with its base, as `--json` prints it.

    Args:
        base: overrides of the base, in Hydra's grammar, in one text.
        candidate: overrides of the candidate.
        common: overrides of both, `out` among them.
        settings: of the decision and its campaign.
        score: `benchmarks`, one benchmark, `test` or `validation`.
        config_dir: a folder with levels of the user's own.
        dry_run: whether to say what it would be, and train and write nothing.

    Raises:
        UserError: the request is wrong.
        Stopped: training was ended; the same request goes on.
    """
    from ablate.commands.decide_loop import Referee
    from ablate.commands.decide_pair import Change, check_words, words_of
    from ablate.config.compose import command
    from ablate.config.composer import config_loader
    from ablate.paths import check_folder
    from ablate.results.store import Store

    both = words_of(base, "BASE"), words_of(candidate, "CANDIDATE")
    check_words([*both[0], *both[1], *common])
    given = argparse.Namespace(config_dir=config_dir, retry_failed=False)
    out = Path(command(common, loader=config_loader(folders(given)))["out"])
    check_folder("out", out, write=not dry_run)

    def train(overrides: Sequence[str]) -> int:
        with contextlib.redirect_stdout(sys.stderr):  # the verdict alone stands on stdout
            return sweep(overrides, given)

    request = Change(*both, tuple(common), score)
    referee = Referee(request, settings, Store(out), folders(given), train)
    if not dry_run:
        return referee.decide()
    from ablate.commands.decide_plan import plan

    return plan(referee)


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.commands import decide_view as view
    from ablate.commands.decide_loop import Stopped

    if len(rest) < 2:
        raise UserError(
            "decide: takes BASE and CANDIDATE, each one word of overrides in quotes, as in "
            'ablate decide "adapter=lora" "adapter=dora rank=8" --margin 1'
        )
    base, candidate, *common = rest
    settings = settings_of(**{name: getattr(given, name) for name in SETTINGS})
    own = {name: getattr(given, name) for name in ("score", "config_dir", "dry_run")}
    try:
        found = decide(base, candidate, common, settings, **own)
    except Stopped as stop:
        return stop.status
    if given.json:
        print(json.dumps(found))
    else:
        for line in view.plan_lines(found) if given.dry_run else view.lines(found):
            paragraph(CONSOLE, line)
    return 0 if given.dry_run else view.STATUS[found["verdict"]]


def settings_of(
    margin: float | None = None,
    miss: float | None = None,
    max_seeds: int | None = None,
    looks: Sequence[int] | None = None,
    **others: Any,
) -> "Settings":
    """Return the settings of a decision, the usual ones where nothing is given.

    Args:
        margin: the smallest effect worth having.
        miss: error of a wrong reject.
        max_seeds: the most seeds.
        looks: numbers of seeds at which one looks; the last is the most seeds.
        others: further settings, by the names of `Settings`.

    Raises:
        UserError: there is no margin, or they do not fit together.
    """
    from ablate.commands.decide_settings import FIRST, MISS, MOST, Settings

    if margin is None:
        raise UserError("--margin: is needed: the smallest effect worth having, as in --margin 1")
    if looks and max_seeds:
        raise UserError("--max-seeds: the last of --looks says it; give one of the two")
    most = max_seeds or MOST
    chosen = list(looks or range(min(FIRST, most), most + 1))
    if chosen[0] < 2 or chosen != sorted(set(chosen)) or chosen[-1] > MOST_SEEDS:
        name = "looks" if looks else "max-seeds"
        raise UserError(
            f"--{name}={','.join(map(str, looks or [most]))}: must be numbers of seeds that rise, "
            f"from 2 to {MOST_SEEDS}"
        )
    return Settings(margin=margin, miss=miss or MISS, looks=tuple(chosen), **others)


VERB = Verb(
    name="decide",
    summary="accept or reject one change, by a sequential rule fixed before its first run",
    about=(
        "Runs seeds of a base and of a candidate, both under the same ones, until a rule that was "
        "fixed before accepts (better than the base), rejects (not better by --margin) or has used "
        "its seeds. All decisions of a folder share one error rate: the chance that it ever holds "
        "a false accept. Recorded runs are not trained again; a question asked again gets its "
        "recorded answer. Exit status: 0 accept, 4 reject, 1 undecided, 2 a wrong request."
    ),
    words=f"BASE CANDIDATE {OVERRIDES}",
    options=(
        RETRY_FAILED,
        Flag("--margin", "the smallest effect worth having, in units of the score", "M", above_0),
        Flag("--score", "benchmarks (their mean, in points), one benchmark, test or validation "
             "(held-out loss)", "NAME", default="benchmarks"),
        Flag("--miss", "error of rejecting an effect of --margin (default 0.1)", "P", error_rate),
        Flag("--max-seeds", "the most seeds of this decision (default 20)", "N", whole),
        Flag("--looks", "numbers of seeds at which one looks (default 3,4,5,...)", "N,N", wholes),
        Flag("--alpha", "error of any false accept in the campaign (default 0.05)", "P",
             error_rate),
        Flag("--decisions", "that the campaign expects; more are no harm (default 50)", "N", whole),
        Flag("--campaign-seeds", "the most seeds of all decisions in OUT together", "N", whole),
        Flag("--fresh", "count only seeds of which neither side has a run yet"),
        Flag("--anew", "decide an answered question again, on fresh seeds; spends again"),
        Flag("--dry-run", "say what it would be, cost and find; trains and writes nothing"),
        Flag("--json", "print one JSON object"),
    ),
    examples=(
        'ablate decide "adapter=lora" "adapter=dora" rank=8 out=results/loop --margin 1',
        'ablate decide "" "train.lr=3e-3" out=results/loop --margin 0.5 --max-seeds 12 --json',
        'ablate decide "masking=none plw=0.1" "masking=none plw=1" --margin 1 --dry-run',
    ),
    run=_run,
    settings=tuple(key for key in GRID if key not in OF_THE_RULE),
)  # fmt: skip
