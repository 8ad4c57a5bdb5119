"""`ablate judge`: has generated answers compared or graded by a judge."""

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.commands.verb import Flag, Verb, above_0, whole
from ablate.errors import UserError
from ablate.paths import check_results
from ablate.terminal import CONSOLE

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from ablate.judge.asked import Judge, Mode
    from ablate.judge.carried import Contest

MODES = ("pairwise", "three_way", "grade")
RULE, REFERENCE = "rule", "reference"
KEY = "OPENAI_API_KEY"


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if not rest:
        raise UserError("judge: name the folder of results")
    out = Path(rest[0].removeprefix("out="))
    check_results(out)
    from ablate.judge import arms, carried
    from ablate.results.files import sha256
    from ablate.results.store import Store

    store = Store(out)
    chosen = arms.levels_of(rest[1:], "")
    words = [] if given.baseline in (None, REFERENCE) else given.baseline.split()
    baseline = arms.levels_of(words, "--baseline ")
    mode: Mode = given.mode or "pairwise"
    _check(given)
    pairs = arms.pairs(store.out, chosen, baseline)
    judge = _judge(given, mode)
    if given.prompts:
        _say(_of_prompts(given, pairs, mode))
        if given.dry_run:
            return 0
    found = _contests(given, store, pairs)
    if not found:
        raise UserError("judge: the runs have no prompt in common")
    plan = carried.planned(store, judge, mode, found, references=not given.no_reference)
    _say(plan.cost())
    if given.dry_run:
        return 0
    judgments, failed = carried.carried_out(plan)
    folder = store.out / carried.FOLDER / (given.name or _name(given, mode))
    request = {k: v for k, v in vars(given).items() if not k.startswith("_")}
    about: dict[str, Any] = {"levels": rest[1:], "judge_identity": dict(judge.identity)}
    if given.prompts:
        about["prompts_sha256"] = sha256(given.prompts)
    carried.written(folder, judgments, request | about)
    for line in tabulated(folder, judgments, mode):
        _say(line)
    if failed:
        why = next((error for row in judgments for error in row["errors"]), "")
        _say(f"{failed:,} requests got no reply ({why}), and their pairs are in no rate; the same "
             "command asks them again")  # fmt: skip
    _say(f"written: {folder}")
    return 1 if failed else 0


def _check(given: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        UserError: they do not.
    """
    if given.judge is None:
        raise UserError("--judge: say who judges: rule, a model's folder or hub id, or with "
                        "--base-url the endpoint's name of a model")  # fmt: skip
    if given.prompts and given.tasks:
        raise UserError("--prompts: cannot be asked together with --tasks")
    if given.judge == RULE:
        for option in ("prompts", "base_url", "prompt"):
            if getattr(given, option):
                raise UserError(f"--{option.replace('_', '-')}: --judge=rule takes none")
    for option in ("key_env", "max_tokens", "timeout", "parallel"):
        if getattr(given, option) is not None and not given.base_url:
            raise UserError(f"--{option.replace('_', '-')}: belongs to --base-url")
    if given.max_new is not None and not given.prompts:
        raise UserError("--max-new: belongs to --prompts; what is recorded is not generated again")
    if given.name and not re.fullmatch(r"[\w.+-]{1,80}", given.name):
        raise UserError(f"--name={given.name}: must be letters, digits, and . _ + -")
    if given.key_env and not re.fullmatch(r"[A-Za-z_]\w*", given.key_env):
        raise UserError("--key-env: must be the name of an environment variable, not the key")
    if given.key_env and not os.environ.get(given.key_env, "").strip():  # perhaps it is the key
        raise UserError("--key-env: no environment variable of this name is set")


def _judge(given: argparse.Namespace, mode: "Mode") -> "Judge":
    from ablate.judge.asked import wording

    if given.judge == RULE:
        from ablate.judge.rule import RuleJudge

        return RuleJudge()
    form = wording(mode, Path(given.prompt) if given.prompt else None)
    if given.base_url:
        from ablate.judge.endpoint import EndpointJudge, Reaching

        asked = {n: getattr(given, n) for n in ("key_env", "timeout", "parallel")}
        reaching = Reaching(**{n: v for n, v in asked.items() if v is not None})
        size = {} if given.max_tokens is None else {"max_tokens": given.max_tokens}
        return EndpointJudge(given.base_url, given.judge, form, reaching=reaching, **size)
    from ablate.judge.local import LocalJudge

    return LocalJudge(given.judge, form)


def _contests(given: argparse.Namespace, store: Any, pairs: Any) -> "list[Contest]":
    from ablate.judge import answers, carried

    if given.prompts:
        prompts = answers.of_file(Path(given.prompts), given.limit)
        size = given.max_new or answers.MAX_NEW
        return carried.contests_of_file(store, pairs, prompts, max_new=size)
    tasks = given.tasks.split(",") if given.tasks else []
    if given.judge == RULE:
        from ablate.judge.rule import check

        check(tasks or answers.recorded_tasks(store, pairs[0].key))
    text = given.judge != RULE
    return carried.contests(store, pairs, tasks=tasks, limit=given.limit, text=text)


def _of_prompts(given: argparse.Namespace, pairs: Any, mode: str) -> str:
    """Return in a line what a file of prompts may take, before anything is generated."""
    from ablate.judge import answers

    prompts = answers.of_file(Path(given.prompts), given.limit)
    runs = {key for p in pairs for key in (p.key, p.baseline_key) if key is not None}
    return (
        f"{len(pairs):,} pairs of runs, {len(prompts):,} prompts: at most "
        f"{2 * len(pairs) * len(prompts):,} requests, {len(runs) * len(prompts):,} answers of "
        f"{len(runs):,} runs to generate where they are not kept"
    )


def _name(given: argparse.Namespace, mode: str) -> str:
    """Return the folder's name: who judged what, in which mode, against what."""
    place = Path(given.prompts).stem if given.prompts else given.tasks or "tasks"
    words = (given.judge, place, mode, given.baseline or REFERENCE)
    return re.sub(r"[^\w.+-]+", "-", "_".join(words)).strip("-.")[-80:]


def tabulated(folder: Path, judgments: Sequence[Any], mode: str) -> "Iterator[str]":
    """Write the win rates or grades that judgments come to, and yield them as lines."""
    import pandas as pd

    from ablate.results.spreadsheet import write_csv
    from analysis.questions.judging.estimate import grades, win_rates

    graded = mode == "grade"
    table = (grades if graded else win_rates)(pd.DataFrame(judgments))
    write_csv(table, folder / ("grades.csv" if graded else "win_rates.csv"))
    for row in table.to_dict("records"):
        yield f"{row['task']}: {row['arm']} beside {row['baseline']}"
        if math.isnan(row["grade" if graded else "win_rate"]):
            yield f"  no verdict{_left_out(row)}"
        else:
            yield f"  {_grade(row) if graded else _rate(row)}"


def _rate(row: "Mapping[Hashable, Any]") -> str:
    """Return a win rate in a line."""
    told = f"win rate {row['win_rate']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
    if row["lc_win_rate"] == row["lc_win_rate"]:
        ends = f"{row['lc_low']:.1%} to {row['lc_high']:.1%}"
        told += f", length-controlled {row['lc_win_rate']:.1%} ({ends})"
    told += f"; {row['wins']} wins, {row['ties']} ties, {row['losses']} losses"
    if row["inconsistent"] > 0:
        told += f"; {row['inconsistent']:.0%} disagree with their swapped order"
    return told + _left_out(row)


def _grade(row: "Mapping[Hashable, Any]") -> str:
    """Return a mean grade in a line."""
    ends = f"{row['difference_low']:+.2f} to {row['difference_high']:+.2f}"
    return (
        f"grade {row['grade']:.2f} ({row['low']:.2f} to {row['high']:.2f}), less the baseline's "
        f"{row['difference']:+.2f} ({ends}){_left_out(row)}"
    )


def _left_out(row: "Mapping[Hashable, Any]") -> str:
    return f"; {row['unparsable']} without a verdict" if row["unparsable"] else ""


def _say(line: str) -> None:
    CONSOLE.print(line, soft_wrap=True, markup=False, highlight=False)


VERB = Verb(
    name="judge",
    summary="win rates or grades of generated answers, by a rule, a model or an endpoint",
    about=(
        "Compares what runs generated with what a baseline's runs, or the reference answers, say "
        "to the same prompts: in both orders, with and without the length of the answers, with "
        "intervals. Says first how many requests that takes; what was asked once is not asked "
        "again. Exit status 1 where requests got no reply."
    ),
    words="DIR [FACTOR=LEVEL ...]",
    options=(
        Flag("--judge", "rule (of the micro world), a folder or hub id of a model, or with "
             "--base-url the endpoint's name of a model", "JUDGE"),
        Flag("--mode", "pairwise (A or B), three_way (or a tie) or grade (1 to 10); default: "
             "pairwise", "MODE", str, MODES),
        Flag("--baseline", 'levels of the runs to compare with, as "adapter=full rank=8", or '
             "reference (default): the right answers", "LEVELS"),
        Flag("--tasks", "recorded tasks, parted by commas (default: all with generated answers)",
             "NAMES"),
        Flag("--prompts", "a file of prompts that the runs answer now: instruction, input, output",
             "FILE"),
        Flag("--max-new", "of --prompts: tokens of an answer, at most (default: 256)", "N", whole),
        Flag("--limit", "the first N prompts alone", "N", whole),
        Flag("--no-reference", "do not show the judge the reference answers"),
        Flag("--prompt", "your wording: a text file with {prompt}, {first}, {second}, {reference}",
             "FILE"),
        Flag("--base-url", "of an OpenAI-compatible endpoint, as http://localhost:8000/v1", "URL"),
        Flag("--key-env", f"the environment variable with the key (default: {KEY})", "NAME"),
        Flag("--max-tokens", "of a reply of the endpoint, at most (default: 16)", "N", whole),
        Flag("--timeout", "seconds that a request may take (default: 120)", "SECONDS", above_0),
        Flag("--parallel", "requests at once (default: 4)", "N", whole),
        Flag("--name", "of the folder in DIR/judgments/ (default: from the options)", "NAME"),
        Flag("--dry-run", "say what it would take, and ask nothing"),
    ),
    examples=(
        "ablate judge results/mine --judge rule --baseline adapter=full",
        'ablate judge results/mine adapter=lora --judge ./judge --baseline "adapter=full plw=0"',
        "ablate judge results/mine --judge NAME --base-url http://localhost:8000/v1 --dry-run",
    ),
    run=_run,
)  # fmt: skip
