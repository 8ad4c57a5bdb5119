"""The Hydra application: `python -m ablate` and, behind its verbs, `ablate`.

`ablate sweep X` is `python -m ablate -m X`: both end in `sweep_grid`.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.markup import escape

from ablate import interrupts
from ablate.config.compose import explained
from ablate.config.overrides import normal, one_line
from ablate.errors import Halted, UserError, halted, refuse
from ablate.evaluate.tasks_index import check_data
from ablate.experiment.cost import Cost, check_disk, cost, wall_seconds
from ablate.experiment.design import Named
from ablate.experiment.gpu_fit import check_fits, gpu_size
from ablate.experiment.notes import notes
from ablate.experiment.request import Request, check_machine, plan_grid
from ablate.experiment.status import missing
from ablate.experiment.trackers import trackers
from ablate.experiment.tuned_table import put
from ablate.machine import MachineFault, fault
from ablate.micro.tasks import TASKS as MICRO
from ablate.models import gpu_slots
from ablate.paths import conf_dir
from ablate.progress import Shown
from ablate.results import repairs, seal
from ablate.results.files import set_aside
from ablate.results.store import Store
from ablate.sweep import Launch, Outcome, Workers, carry_out
from ablate.terminal import CONSOLE, duration, paragraph, unbroken
from ablate.training.stop import TrainingStopped
from ablate.work import work

FAILURES = 10  # failed runs that are named


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def application(tree: DictConfig) -> None:
    """Work through a bundle of cells, as a launched job, or run the one cell composed here."""
    if tree.bundle is not None:
        work(Path(tree.bundle))
        return
    sweep_grid(list(HydraConfig.get().overrides.task), _launch_here)


def _launch_here(bundles: Sequence[Path], workers: int = 1) -> None:
    for bundle in bundles:
        work(bundle)


def main(arguments: Sequence[str]) -> int:
    """Run the application on Hydra's `arguments` and return the exit status."""
    if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
        return refuse(_several_processes())
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach us; we print them as one line
    sys.argv = ["ablate", *(normal(a) for a in arguments)]
    try:
        with unbroken():
            application()
    except UserError as error:
        return refuse(error)
    except TrainingStopped as stop:
        print(f"ablate: {stop.line}", file=sys.stderr)
        return stop.status
    except Halted as error:
        return halted(error)
    except KeyboardInterrupt as stop:
        return interrupts.told(stop)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as error:
        if words := fault(error):
            return halted(MachineFault(words))
        cause = explained(error, sys.argv[1:])
        if not isinstance(cause, UserError | HydraException | OmegaConfBaseException):
            raise
        return refuse(one_line(cause))
    return 0


def _several_processes() -> UserError:
    return UserError(
        f"WORLD_SIZE={os.environ['WORLD_SIZE']}: one process starts a sweep, which starts all "
        "others itself: a worker with cells of its own on every GPU, or execution.devices=N for "
        "one cell on N; start it without accelerate launch or torchrun"
    )


def sweep_grid(
    overrides: Sequence[str],
    launch: Launch,
    *,
    workers: int | None = 1,
    loader: ConfigLoader | None = None,
    elsewhere: bool = False,
) -> None:
    """Carry out the grid of Hydra `overrides` and end with the table and the report.

    Args:
        overrides: in Hydra's grammar.
        launch: runs bundle files and returns when they have ended.
        workers: how many cells it runs at once; None: one on each GPU, or a few on the CPU.
        loader: Hydra's own, which knows the user's folders of levels.
        elsewhere: whether the cells may be computed on other machines, whose GPUs are not known.

    Raises:
        UserError: the request is wrong; nothing was trained.
        SystemExit: with status 1 where cells failed.
    """
    request = plan_grid(overrides, loader=loader)
    told = trackers(request.settings, study=request.design.study, out=request.out)
    store = Store(request.out)
    store.prepare()
    for line in (*repairs.take_kept(store), *repairs.set_damaged_aside(store, request.design.runs)):
        CONSOLE.print(line, soft_wrap=True, markup=False)
    chosen = replace(_workers(request, workers, elsewhere=elsewhere), trackers=told)
    absent = missing(request.design, store)
    lacking = [name for names in absent.values() for name in names]
    size, _ = gpu_size(request.settings["gpu_gb"])
    size /= max(1, chosen.per_gpu)
    estimate = cost((names[0] for names in absent.values()), store, gpu_bytes=size)
    check_disk(estimate.disk_bytes, store)
    if not elsewhere:
        check_machine(name.cell for name in lacking)
    if gpu_slots.gpus() and not elsewhere:
        check_fits(estimate.too_large, size)
    check_data(dict.fromkeys(task for name in lacking for task in name.cell.evaluate.tasks))
    todo = absent
    if request.settings["retry_failed"]:
        for key in request.design.runs:
            store.clear_failures(key)
        todo = missing(request.design, store)
    _check_scoring(todo, store)
    others = [name for named in todo.values() for name in named[1:]]
    for note in notes((named[0] for named in todo.values()), others):
        paragraph(CONSOLE, note, lead="note")
    count = max(1, chosen.count)
    watch = Shown(
        CONSOLE,
        dict(zip(absent, estimate.expected, strict=True)),
        workers=count,
        start_seconds=estimate.start_seconds,
        basis=estimate.basis,
    )
    watch.stop_after = request.settings["stop_after"]
    outcome = carry_out(request.design, request.out, launch, workers=chosen, watch=watch)
    if request.design.tuned:
        _put_rates(request)
    conclude(request, outcome, expected(estimate, outcome, chosen))
    if outcome.status:
        raise SystemExit(outcome.status)


def _put_rates(request: Request) -> None:
    """Put the rates that the cells were trained at beside their results."""
    path = request.out / "tuned.csv"
    try:
        put(request.design.tuned, path)
    except (UserError, OSError):  # what is there is damaged
        set_aside(path, Store(request.out).damaged)
        put(request.design.tuned, path)


def expected(estimate: Cost, outcome: Outcome, workers: Workers) -> str:
    """Return how long a sweep was expected to take, and its processor time beside that."""
    wall = wall_seconds(estimate.by_run, workers.count, estimate.start_seconds)
    told = f"{duration(wall)} from {estimate.basis}"
    if workers.per_gpu and gpu_slots.gpus():
        return told
    used = estimate.seconds + estimate.start_seconds * min(workers.count, len(estimate.by_run))
    spent = outcome.processor_seconds
    return f"{told}; processor time on this machine {duration(spent)}, expected {duration(used)}"


def _workers(request: Request, workers: int | None, *, elsewhere: bool) -> Workers:
    per_gpu = request.settings["workers_per_gpu"]
    on_gpu = any(named.cell.execution.device != "cpu" for named in request.design.cells)
    devices = max((named.cell.execution.devices for named in request.design.cells), default=1)
    here = on_gpu and not elsewhere
    if here:
        gpu_slots.check_devices(devices, per_gpu=per_gpu)
    asked = gpu_slots.workers(workers, per_gpu=per_gpu, on_gpu=here, devices=devices)
    return Workers(asked, per_gpu if on_gpu else 0, devices, request.settings["cell_minutes"])


def _check_scoring(todo: Mapping[str, Sequence[Named]], store: Store) -> None:
    """Refuse what could be trained but not scored; the micro world's own is known to be sound."""
    runs = ((named, store.scored(key)) for key, names in todo.items() for named in names)
    doubtful = [
        (named, unit)
        for named, scored in runs
        for unit in named.identity.units
        if unit.kind == "task"
        and unit.key not in scored
        and not (named.cell.model.source == "micro" and unit.name in MICRO)
    ]
    if doubtful:
        from ablate.evaluate import preflight  # torch, which workers import too
        from ablate.evaluate.scoring import Wanted

        preflight.check([Wanted(n.cell, unit, n.identity.files) for n, unit in doubtful])


def _told_new(outcome: Outcome) -> str:
    """Return how many runs are new, and how many were trained before and only scored."""
    again = f", {outcome.scored} scored again" if outcome.scored else ""
    return f"{outcome.trained} new{again}"


def conclude(request: Request, outcome: Outcome, expected: str = "") -> None:
    """Print the summary of a sweep and, unless the request leaves it out, write the report.

    Args:
        request: what was asked for.
        outcome: what came of it.
        expected: how long it was expected to take, in words.
    """
    CONSOLE.print(
        f"{outcome.total} runs: {outcome.found} were recorded, {_told_new(outcome)}, "
        f"{len(outcome.failed)} failed, {duration(outcome.seconds)}"
        + (f" (expected: {expected})" if outcome.trained + outcome.scored and expected else ""),
        soft_wrap=True,
    )
    for key, why in list(outcome.failed.items())[:FAILURES]:
        CONSOLE.print(f"  [red]failed[/red] {key}: {escape(why)}")
    for key, what in list(outcome.unscored.items())[:FAILURES]:
        CONSOLE.print(f"  [red]incomplete[/red] {key}: {escape(what)}")
    results, study = outcome.out / "results.parquet", request.grid.study
    CONSOLE.print(f"table: {results}")
    about = {key: study.get(key) for key in ("name", "question")}
    Store(request.out).put(request.out / "study.json", json.dumps(about).encode())
    if not request.settings["report"] or study.get("report", True) is False:
        return
    CONSOLE.print(f"writing the report into {results.parent / 'report'} ...", soft_wrap=True)
    try:
        with interrupts.raised():
            page = _report(results, study=study.get("name"))
    except KeyboardInterrupt:
        paragraph(CONSOLE, f"report not written; `ablate report {request.out}` writes it")
        raise
    if page:
        from analysis.report.outcome import outcome as said

        for line in said(page):
            paragraph(CONSOLE, line)


def _is_strange(folder: Path) -> bool:
    """Return whether `folder` is none, or holds what is neither a file nor a folder."""
    if not folder.is_dir():
        return os.path.lexists(folder)
    return not all(path.is_file() or path.is_dir() for path in folder.rglob("*"))


def _report(results: Path, *, study: str | None) -> Path | None:
    """Return the page of the report; it is written unless one of this table is there, whole."""
    folder = results.parent / "report"
    if seal.is_made(folder, results):
        return folder / "index.html"
    from analysis.errors import AnalysisError
    from analysis.report.build import build

    try:
        if _is_strange(folder):
            set_aside(folder, results.parent / "damaged")
        try:
            page = build(results, folder, study=study)
        except OSError:  # something else stands where one of its files is to be
            set_aside(folder, results.parent / "damaged")
            page = build(results, folder, study=study)
        seal.note_made(folder, results)
        return page
    except AnalysisError as error:  # two cells cannot be fitted: the table is there all the same
        CONSOLE.print(f"no report: {error}")
        return None
