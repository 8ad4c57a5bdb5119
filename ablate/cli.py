"""The program `ablate`: verbs in front, Hydra overrides behind.

Exit status: 0 all well, 1 some cells failed (the rest are recorded), 2 the request was wrong.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ablate import __version__
from ablate.errors import UserError, nearest

CONSOLE = Console()
HYDRA_ASKS = ("--cfg", "-c", "--info", "-i", "--help", "--hydra-help", "--shell-completion", "-sc")


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"ablate {__version__}")
        return 0
    from ablate.app import refuse

    try:
        if words[0] not in VERBS:
            raise UserError(
                f"{words[0]}: no such verb; {', '.join(VERBS)}.{nearest(words[0], VERBS)}"
            )
        return VERBS[words[0]][0](words[1:])
    except UserError as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("ablate: stopped; what is recorded stays, the same command goes on", file=sys.stderr)
        return 130


def sweep_grid(
    overrides: list[str], launch: Callable[..., Any], *, workers: int = 1, loader: Any = None
) -> None:
    """Carry out the grid of Hydra `overrides` and end with the table and the report.

    Args:
        overrides: what the user typed.
        launch: runs bundle files and returns when they have ended (`ablate.sweep.Launch`).
        workers: how many cells it runs at once.
        loader: Hydra's own, which knows the user's folders of levels.

    Raises:
        UserError: the request is wrong; nothing was trained.
        SystemExit: with status 1 where cells failed.
    """
    from ablate.commands.plan import check_resources, plan_grid
    from ablate.experiment.tuned import write_used
    from ablate.progress import Shown
    from ablate.results.store import Store
    from ablate.sweep import carry_out

    request = plan_grid(overrides, loader=loader)
    if request.settings["single"] and len(request.grid.points) != 1:
        count = len(request.grid.points)
        raise UserError(f"ablate run takes one cell, not {count}; ablate sweep takes a grid")
    store = Store(request.out)
    store.prepare()
    check_resources(request.design, store)
    if request.settings["retry_failed"]:
        for key in request.design.runs:
            store.forgive(key)
    watch = Shown(CONSOLE)
    outcome = carry_out(request.design, request.out, launch, workers=workers, watch=watch)
    write_used((named.cell for named in request.design.cells), request.out / "tuned.csv")
    about = {key: request.grid.study.get(key) for key in ("name", "question")}
    (request.out / "study.json").write_text(json.dumps(about))
    conclude(outcome, study=request.grid.study, report=request.settings["report"])
    if outcome.status:
        raise SystemExit(outcome.status)


def conclude(outcome: Any, *, study: dict[str, Any], report: bool) -> None:
    """Print what a sweep came to and, where one is wanted, write the report."""
    from ablate.progress import duration

    CONSOLE.print(
        f"{outcome.total} runs: {outcome.found} were recorded, {outcome.trained} new, "
        f"{len(outcome.failed)} failed, {duration(outcome.seconds)}",
        highlight=False,
    )
    for key, why in list(outcome.failed.items())[:10]:
        CONSOLE.print(f"  [red]failed[/red] {key}: {why}", highlight=False)
    results = outcome.out / "results.parquet"
    CONSOLE.print(f"table: {results}", highlight=False)
    if not report or study.get("report", True) is False:
        return
    page = _report(results, outcome.out / "report", outcome.trained > 0, study=study)
    if page:
        CONSOLE.print(f"report: {page}", highlight=False, soft_wrap=True)


def _report(results: Path, folder: Path, new: bool, *, study: dict[str, Any]) -> Path | None:
    """Write the report unless it is newer than everything it would be made from."""
    page = folder / "index.html"
    if page.exists() and not new:
        return page
    from analysis.errors import AnalysisError
    from analysis.report.build import build

    try:
        return build(results, folder, study=study.get("name"))
    except AnalysisError as error:  # two cells make no regression: the table stands all the same
        CONSOLE.print(f"no report: {error}", highlight=False)
        return None


def _run(words: list[str]) -> int:
    return _sweep(["hydra/launcher=basic", "single=true", *words])


def _sweep(words: list[str]) -> int:
    from ablate import app

    retry = ["retry_failed=true"] if "--retry-failed" in words else []
    words = [word for word in words if word != "--retry-failed"]
    asks = any(word.split("=")[0] in HYDRA_ASKS for word in words)  # Hydra takes these alone
    return app.main([*([] if asks else ["-m"]), *words, *retry])


def _plan(words: list[str]) -> int:
    from ablate.commands.plan import plan_grid, render, render_power, summarise

    form, overrides = _option(words, "--format", ("text", "json"))
    asked, overrides = _power_options(overrides)
    margin, overrides = _option(overrides, "--margin", None)
    part, overrides = _option(overrides, "--fraction", None)
    looks, overrides = _looks(overrides)
    frozen = "--freeze" in overrides
    request = plan_grid([word for word in overrides if word != "--freeze"])
    summary = summarise(request)
    if frozen or margin is not None or looks:
        summary["frozen"] = _freeze(request, margin if frozen else None, looks)
    if asked is not None:
        summary["power"] = _power(request, asked)
    if part is not None:
        summary["fraction"] = _fraction(request, part)
    if form == "json":
        print(json.dumps(summary, indent=1))
        return 0
    render(summary, CONSOLE)
    if part is not None:
        CONSOLE.print("\n".join(summary["fraction"]["words"]), highlight=False)
    if asked is not None:
        said = summary["power"]
        render_power(said["tests"], CONSOLE, effect=said["effect"])
        CONSOLE.print(said["noise"], highlight=False)
    if frozen:
        CONSOLE.print("frozen: {file}, SHA-256 {sha256}".format(**summary["frozen"]))
        CONSOLE.print(summary["frozen"]["formula"], highlight=False)
    return 0


def _of_items(noise: Any) -> str:
    if not noise.items > 0:
        return ""
    return f" (of which items {noise.item:.2f}, at {noise.items:g} a task)"


def _fraction(request: Any, part: str) -> dict[str, Any]:
    """Choose a part of a grid and write it as a study."""
    from ablate.commands.plan import fraction_study, prospective
    from analysis.errors import AnalysisError
    from analysis.planning.fraction import fraction
    from analysis.table.frame import from_results, study_rows

    if not part.isdigit():
        raise UserError(f"--fraction={part}: must be a number of runs")
    planned = prospective(request)
    try:
        found = fraction(planned, int(part))
        scored = study_rows(from_results(planned))["run"].astype(str)
    except AnalysisError as error:
        raise UserError(str(error)) from error
    file = fraction_study(request, found.runs, scored)
    levels = found.balance.groupby("factor", sort=False)
    counts = [
        f"  {name}: " + ", ".join(f"{r.level} {r.part} of {r.whole}" for r in own.itertuples())
        for name, own in levels
    ]
    words = [
        f"{part} of {found.whole} runs for {found.coefficients} coefficients: a run is worth "
        f"{found.efficiency:.2f} of the whole grid's, the largest standard error is "
        f"{found.spread:.2f} times the whole grid's",
        *([f"the grid itself cannot tell apart: {', '.join(found.aliased)}"] * bool(found.aliased)),
        *counts,
        f"ablate sweep --config-dir={file.parents[1]} study={file.stem} out={request.out}",
    ]
    return {"runs": list(found.runs), "file": str(file), "words": words}


def _looks(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Take when a frozen plan looks at its tests, and how alpha is spent, out of `words`."""
    looks, words = _option(words, "--looks", None)
    spending, words = _option(words, "--spending", None)
    if spending is not None and looks is None:
        raise UserError("--spending: belongs to --looks, the numbers of seeds at which one looks")
    if looks is None:
        return {}, words
    if not all(n.strip().isdigit() for n in looks.split(",")):
        raise UserError(f"--looks={looks}: must be numbers of seeds, as 2,4,6")
    found: dict[str, Any] = {"looks": [int(n) for n in looks.split(",")]}
    return found | ({"spending": spending} if spending is not None else {}), words


def _freeze(request: Any, margin: str | None, looks: dict[str, Any]) -> dict[str, str]:
    """Write the analysis plan of a grid into its folder of results."""
    from ablate.commands.plan import prospective
    from analysis.errors import AnalysisError
    from analysis.planning.frozen import FILE, freeze

    if margin is None:
        raise UserError("--freeze: needs the smallest effect of interest in points: --margin 2")
    try:
        study = request.design.study
        plan = freeze(prospective(request), study=study, margin=float(margin), **looks)
        plan.write(request.out / FILE)
    except ValueError as error:
        raise UserError(f"--margin={margin}: must be a number of points") from error
    except AnalysisError as error:
        raise UserError(str(error)) from error
    return {"file": str(request.out / FILE), "sha256": plan.sha256, "formula": plan.formula}


def _power_options(words: list[str]) -> tuple[dict[str, str] | None, list[str]]:
    """Take the options of `plan --power` out of `words`; None where it is not asked for."""
    asked: dict[str, str] = {}
    for name in ("--pilot", "--effect", "--seeds", "--items", "--draws"):
        value, words = _option(words, name, None)
        if value is not None:
            asked[name[2:]] = value
    wanted = "--power" in words
    if asked and not wanted:
        raise UserError(f"--{next(iter(asked))}: belongs to plan --power")
    return (asked if wanted else None), [word for word in words if word != "--power"]


def _power(request: Any, asked: dict[str, str]) -> dict[str, Any]:
    """Return the power of a grid's tests, by simulation from a pilot's noise."""
    from ablate.commands.plan import prospective
    from analysis.errors import AnalysisError
    from analysis.planning.power import DRAWS, SEEDS, components, power, published
    from analysis.table.frame import read

    if "pilot" not in asked:
        raise UserError(
            "--power: needs the noise of scores like these: --pilot RESULTS, or --pilot published"
        )
    try:
        numbers = {k: float(v) for k, v in asked.items() if k not in ("pilot", "seeds")}
        seeds = [int(n) for n in asked["seeds"].split(",")] if "seeds" in asked else list(SEEDS)
    except ValueError as error:
        raise UserError(f"--power: effect, seeds, items and draws are numbers ({error})") from error
    items = int(numbers["items"]) if "items" in numbers else None
    effect, draws = numbers.get("effect", 2.0), int(numbers.get("draws", DRAWS))
    try:
        if asked["pilot"] == "published":
            noise = published().with_items(items)
        else:
            noise = components(read(asked["pilot"]), source=asked["pilot"]).with_items(items)
        tests = power(prospective(request), noise, effect=effect, seeds=seeds, draws=draws)
    except AnalysisError as error:
        raise UserError(str(error)) from error
    said = (
        f"simulated from {noise.source}: run {noise.run:.2f}, one score of a run "
        f"{noise.residual:.2f} points{_of_items(noise)}; {draws} studies each, so a power is "
        f"known to {50 / draws**0.5:.0f} points or so"
    )
    return {"effect": effect, "noise": said, "tests": tests.to_dict("records")}


def _status(words: list[str]) -> int:
    from ablate.commands.status import render, states

    parser = argparse.ArgumentParser("ablate status", description=VERBS["status"][1])
    parser.add_argument("out", nargs="?", default="results/default")
    found = states(Path(parser.parse_args(words).out.removeprefix("out=")))
    render(found, CONSOLE)
    return 1 if any(s.state == "failed" for s in found) else 0


def _tokens(words: list[str]) -> int:
    from ablate.commands.plan import plan_grid
    from ablate.commands.tokens import html, preview

    count, words = _option(words, "--rows", None)
    page, overrides = _option(words, "--html", None)
    cell = plan_grid(overrides).design.cells[-1].cell  # the first is its base
    rows = int(count) if count and count.isdigit() else 3
    if page:
        Path(page).write_text(html(cell, rows))
        CONSOLE.print(f"wrote {page}", highlight=False)
        return 0
    for part in preview(cell, rows):
        CONSOLE.print(part)
    return 0


def _report_verb(words: list[str]) -> int:
    from analysis.errors import AnalysisError
    from analysis.report.build import build

    parser = argparse.ArgumentParser("ablate report", description=VERBS["report"][1])
    parser.add_argument("source", help="a folder of results, or a CSV or parquet table")
    parser.add_argument("--out", help="where to write (default: SOURCE/report)")
    parser.add_argument("--score", help="the column with the score")
    parser.add_argument("--formula", help="e.g. 'score ~ wp + I(wp^2) + (1 | run)'; else proposed")
    families = "gaussian, binomial (0/1, or shares with --weights), beta, beta_squeezed, ..."
    parser.add_argument("--family", help=f"{families}; else as the scores suggest")
    parser.add_argument("--weights", help="a column: trials of a binomial, else weights of rows")
    parser.add_argument("--df", help="satterthwaite, kenward-roger or normal; else the affordable")
    parser.add_argument("--margin", type=float, help="an effect within +- this counts as none")
    parser.add_argument("--frozen", help="a plan of `plan --freeze` (default: SOURCE/frozen.json)")
    asked = parser.parse_args(words)
    source = Path(asked.source)
    if source.is_dir() and (source / "designs").is_dir():
        from ablate.experiment.design import collect

        collect(source)
    table = source / "results.parquet" if source.is_dir() else source
    if not table.exists():
        raise UserError(
            f"{table}: no such table; give a folder of results, a CSV or a parquet file"
        )
    out = Path(asked.out) if asked.out else table.parent / "report"
    try:
        page = build(
            table, out, score=asked.score, formula=asked.formula, family=asked.family,
            weights=asked.weights, df=asked.df, margin=asked.margin, frozen=asked.frozen,
        )  # fmt: skip
    except AnalysisError as error:
        raise UserError(str(error)) from None
    CONSOLE.print(f"report: {page}", highlight=False, soft_wrap=True)
    return 0


def _reproduce(words: list[str]) -> int:
    if not words or "=" in words[0]:
        raise UserError(
            "ablate reproduce: name the study, as in `ablate reproduce plw scale=smoke`"
        )
    scale = next((w.split("=", 1)[1] for w in words if w.startswith("scale=")), "micro")
    out = [] if any(w.startswith("out=") for w in words) else [f"out=results/{words[0]}_{scale}"]
    return _sweep([f"study={words[0]}", *out, *words[1:]])


def _tune(words: list[str]) -> int:
    from ablate.experiment.tuned import tune

    return tune(words, sweep=_sweep, console=CONSOLE)


def _pretrain(words: list[str]) -> int:
    from ablate.commands.pretrain import main as pretrain

    return pretrain(words, CONSOLE)


def _option(
    words: list[str], name: str, choices: tuple[str, ...] | None
) -> tuple[str | None, list[str]]:
    """Take `name VALUE` or `name=VALUE` out of `words`; return the value and the rest."""
    rest, value, taking = [], None, False
    for word in words:
        if taking:
            value, taking = word, False
        elif word == name:
            taking = True
        elif word.startswith(name + "="):
            value = word.split("=", 1)[1]
        else:
            rest.append(word)
    if taking or (value and choices and value not in choices):
        raise UserError(
            f"{name}: needs a value" + (f", one of {', '.join(choices)}" if choices else "")
        )
    return value, rest


VERBS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "run": (_run, "train and score one cell"),
    "sweep": (_sweep, "carry out a grid; resumes, survives failures, ends with the report"),
    "plan": (_plan, "say what a grid would do, cost and (--power) be able to see; runs nothing"),
    "status": (_status, "done, running, failed and missing cells of a folder"),
    "tokens": (_tokens, "show examples as the loss sees them: each token's role and weight"),
    "report": (_report_verb, "fit and write the report of results, or of any long table"),
    "reproduce": (_reproduce, "a paper's study, its figures beside the published numbers"),
    "tune": (_tune, "choose learning rates on the validation split"),
    "pretrain": (_pretrain, "make a small base model: micro's own, or one from your rows"),
}


def _usage() -> str:
    lines = [f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            "usage: ablate VERB [KEY=VALUE ...]",
            "",
            *lines,
            "",
            "KEY=VALUE are Hydra overrides: masking=none plw=0.1 adapter=lora,mora rank=2,8 "
            "seed=0,1 out=results/mine",
            "groups: masking adapter dataset model train evaluate study; "
            "`ablate sweep --cfg job` prints every setting",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
