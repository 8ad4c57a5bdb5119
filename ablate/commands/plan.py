"""`ablate plan`: what a request would do and cost, and what its tests could find; runs nothing."""

import argparse
import json
from typing import TYPE_CHECKING

from ablate.commands.verb import (
    CONFIG_DIR,
    GRID,
    OVERRIDES,
    Flag,
    Verb,
    above_0,
    folders,
    whole,
    wholes,
)
from ablate.models.gpu import check_driver
from ablate.paths import check_folder
from ablate.terminal import CONSOLE

if TYPE_CHECKING:
    from ablate.experiment.request import Request

FORMATS = ("text", "json")
AT_ONCE = 100_000  # cells that are planned without --all


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.commands import planning
    from ablate.commands.plan_view import render

    planning.check(given)
    if _asks_for_gpu(rest):
        check_driver()  # before the cells are built
    from ablate.experiment.known import Assumed
    from ablate.experiment.request import check_gpu, plan_grid
    from ablate.experiment.summary import summarise

    most = None if given.all else AT_ONCE
    known = None if given.probe else Assumed()  # what is probed must be here
    request = plan_grid(rest, config_dirs=folders(given), known=known, most=most)
    check_gpu(named.cell for named in request.design.cells)
    if given.freeze or given.fraction:
        check_folder("out", request.out)
    unprobed = _probe(request) if given.probe else []
    summary = summarise(request) | {"not_probed": unprobed} | planning.answers(request, given)
    if given.format == "json":
        print(json.dumps(summary, indent=1))
        return 0
    render(summary, CONSOLE)
    return 0


def _probe(request: "Request") -> list[str]:
    """Probe the kinds of runs that nothing is recorded of; return which could not be, and why."""
    from ablate.experiment.cost import work_of
    from ablate.experiment.labels import label
    from ablate.experiment.pace import keep, pace
    from ablate.experiment.status import missing
    from ablate.probing import probes
    from ablate.results.store import Store

    store = Store(request.out)
    recorded = pace(store)
    todo = [names[0] for names in missing(request.design, store).values()]
    found, failed = probes(named for named in todo if not recorded.recorded(work_of(named)))
    keep(found)
    return [f"model={label(c.model)} adapter={label(c.adapter)}: {why}" for c, why in failed]


def _asks_for_gpu(overrides: list[str]) -> bool:
    """Return whether the words of a command ask for a GPU; a study or level may ask as well."""
    from ablate.config.overrides import key_of

    given = (line.partition("=") for line in overrides if key_of(line) == "execution.device")
    return any("cuda" in value.split(",") for _, _, value in given)


VERB = Verb(
    name="plan",
    summary="say what a grid would do, cost and (--power) be able to find; runs nothing",
    about=(
        "Lists the cells of a grid, aliases, illegal combinations with the reason, trained "
        "parameters beside LoRA's budget, and the cost in time, memory and disk. Trains "
        "nothing but, with --probe, a few steps that are thrown away."
    ),
    words=OVERRIDES,
    options=(
        CONFIG_DIR,
        Flag("--format", "text (default) or json", "FORM", choices=FORMATS, default="text"),
        Flag("--all", f"plan more than {AT_ONCE:,} cells as well, which takes minutes"),
        Flag("--probe", "first time a few steps and items of kinds of runs that are not recorded"),
        Flag("--power", "the power of the grid's tests, simulated; needs --pilot"),
        Flag("--pilot", "where the noise comes from: results, or `published`", "RESULTS"),
        Flag("--effect", "the effect to find, in points (default 2)", "POINTS", above_0),
        Flag("--seeds", "numbers of seeds to compare, as 1,2,4", "N,N", wholes),
        Flag("--items", "items of a benchmark (default: as in the pilot)", "N", whole),
        Flag("--draws", "simulated studies", "N", whole),
        Flag("--freeze", "write the tests to OUT/frozen.json before the data; needs --margin"),
        Flag("--margin", "the smallest effect of interest, in points", "POINTS", above_0),
        Flag("--looks", "numbers of seeds at which the frozen tests are run", "N,N", wholes),
        Flag("--spending", "how alpha is spent over the looks: obrien_fleming, pocock", "NAME"),
        Flag("--fraction", "choose the N runs that tell most, as a study of its own", "N", whole),
    ),
    examples=(
        "ablate plan masking=instruction,none plw=0,0.1,1 adapter=lora,mora seed=0,1",
        "ablate plan study=quick --power --pilot results/demo --effect 5",
        "ablate plan study=quick out=results/mine --freeze --margin 2",
    ),
    run=_run,
    settings=(*GRID, "gpu_gb", "skip_illegal"),
)
