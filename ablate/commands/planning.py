"""The options of `ablate plan` that ask the analysis: power, a frozen plan, a part of the grid."""

import argparse
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ablate.errors import UserError
from ablate.paths import check_there
from ablate.terminal import paragraph

if TYPE_CHECKING:
    from ablate.experiment.request import Request

EFFECT = 2.0  # points; the effect whose power is asked for, unless another is given
PUBLISHED = "published"  # the pilot that is the published tables
OWNERS = {  # which options belong to which question
    "power": ("pilot", "effect", "seeds", "items", "draws"),
    "freeze": ("margin", "looks"),
    "looks": ("spending",),
}


def check(given: argparse.Namespace) -> None:
    """Check that the options fit together, before the grid is composed.

    Raises:
        UserError: an option without the one that it belongs to, or without the one that it needs.
    """
    for owner, options in OWNERS.items():
        for name in options:
            if getattr(given, name) is not None and not getattr(given, owner):
                raise UserError(f"--{name}: belongs to plan --{owner}")
    if given.power and given.pilot is None:
        raise UserError(
            "--power: needs the noise of scores like these: --pilot RESULTS, or --pilot published"
        )
    if given.power and given.pilot != PUBLISHED:
        check_there("--pilot", given.pilot)
    if given.freeze and given.margin is None:
        raise UserError("--freeze: needs the smallest effect of interest in points: --margin 2")


def answers(request: "Request", given: argparse.Namespace) -> dict[str, Any]:
    """Return the answer to each question that was asked, JSON-ready: frozen, power, fraction.

    Raises:
        UserError: the analysis cannot answer it for this grid.
    """
    from analysis.errors import AnalysisError

    asked = {"frozen": given.freeze, "power": given.power, "fraction": given.fraction}
    answer = {"frozen": _freeze, "power": _power, "fraction": _fraction}
    try:
        return {name: answer[name](request, given) for name, wanted in asked.items() if wanted}
    except AnalysisError as error:
        raise UserError(str(error)) from error


def _freeze(request: "Request", given: argparse.Namespace) -> dict[str, str]:
    """Write the analysis plan of a grid into its folder of results, and return what it says."""
    from ablate.experiment.prospective import prospective_table
    from analysis.planning.frozen import FILE, freeze

    spending = {"spending": given.spending} if given.spending else {}
    plan = freeze(
        prospective_table(request),
        study=request.design.study,
        margin=given.margin,
        looks=given.looks or (),
        **spending,
    )
    plan.write(request.out / FILE)
    return {"file": str(request.out / FILE), "sha256": plan.sha256, "formula": plan.formula}


def _power(request: "Request", given: argparse.Namespace) -> dict[str, Any]:
    """Return the power of a grid's tests, by simulation from a pilot's noise."""
    from ablate.experiment.prospective import prospective_table
    from analysis.planning.power import DRAWS, SEEDS, components, power, published
    from analysis.table.frame import read

    if given.pilot == PUBLISHED:
        noise = published().with_items(given.items)
    else:
        noise = components(read(given.pilot), source=given.pilot).with_items(given.items)
    effect = EFFECT if given.effect is None else given.effect
    draws = given.draws or DRAWS
    tests = power(
        prospective_table(request), noise, effect=effect, seeds=given.seeds or SEEDS, draws=draws
    )
    spreads = "; ".join(
        f"{dataset + ', ' + group if group else format(one.tasks, 'g') + ' tasks'}: cells "
        f"{one.cell:.2f}, runs {one.run:.2f}"
        + (f" (items {one.item:.2f})" if noise.items > 0 else "")
        for (dataset, group), one in noise.panels.items()
    )
    at = f", at {noise.items:g} items a task" if noise.items > 0 else ""
    sentence = (
        f"simulated from {noise.source}, standard deviations in points{at}: {spreads}; {draws} "
        f"studies each, so a power is known to {50 / draws**0.5:.0f} points or so"
    )
    return {"effect": effect, "noise": sentence, "tests": tests.to_dict("records")}


def _fraction(request: "Request", given: argparse.Namespace) -> dict[str, Any]:
    """Choose a part of a grid, write it as a study and return what it is worth."""
    from ablate.experiment.prospective import part_study, prospective_table
    from analysis.planning.fraction import fraction
    from analysis.table.frame import from_results, study_rows

    planned = prospective_table(request)
    found = fraction(planned, given.fraction)
    scored = study_rows(from_results(planned))["run"].astype(str)
    file = part_study(request, found.runs, scored)
    counts = [
        f"  {name}: " + ", ".join(f"{r.level} {r.part} of {r.whole}" for r in own.itertuples())
        for name, own in found.balance.groupby("factor", sort=False)
    ]
    words = [
        f"{given.fraction} of {found.whole} runs for {found.coefficients} coefficients: a run is "
        f"worth {found.efficiency:.2f} of the whole grid's, the largest standard error is "
        f"{found.spread:.2f} times the whole grid's",
        *([f"the grid itself cannot tell apart: {', '.join(found.aliased)}"] * bool(found.aliased)),
        *counts,
        f"ablate sweep --config-dir {file.parents[1]} study={file.stem} out={request.out}",
    ]
    return {"runs": list(found.runs), "file": str(file), "words": words}


def render(summary: dict[str, Any], console: Console) -> None:
    """Print the answers that a summary holds."""
    if "fraction" in summary:
        for line in summary["fraction"]["words"]:
            paragraph(console, line)
    if "power" in summary:
        _render_power(summary["power"], console)
    if "frozen" in summary:
        paragraph(console, "frozen: {file}, SHA-256 {sha256}".format(**summary["frozen"]))
        paragraph(console, summary["frozen"]["formula"])


def _render_power(found: dict[str, Any], console: Console) -> None:
    """Print, for every test, the power by number of seeds."""
    lines = found["tests"]
    seeds = sorted({line["seeds"] for line in lines})
    shown = Table("masking", "data", "model", "tasks", f"{found['effect']:g} points as", box=None)
    for n in seeds:
        shown.add_column(f"{n} seed{'s' if n > 1 else ''}", justify="right")
    keys = ("mode", "dataset", "model", "task_group", "shape")
    tests = dict.fromkeys(tuple(line[k] for k in keys) for line in lines)
    by = {(*(line[k] for k in keys), line["seeds"]): line["power"] for line in lines}
    for test in tests:
        shares = [by.get((*test, n)) for n in seeds]
        shown.add_row(*map(str, test), *("-" if s is None else f"{s:.0%}" for s in shares))
    console.print(shown)
    paragraph(console, found["noise"])
