"""`ablate plan`: what a request would do and cost, and what its tests could find; runs nothing."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ablate.commands import planning
from ablate.commands.verb import CONFIG_DIR, OVERRIDES, Flag, Verb, above_0, folders, whole, wholes
from ablate.models.gpu import check_driver
from ablate.paths import check_folder
from ablate.terminal import CONSOLE, duration

if TYPE_CHECKING:
    from ablate.experiment.request import Request

FORMATS = ("text", "json")
USUAL = {"placement": "all", "optimizer": "adamw"}  # what an adapter's row need not say
AT_ONCE = 100_000  # cells that are planned without --all
SHOWN = 8  # aliases and illegal cells that are listed


def _run(given: argparse.Namespace, rest: list[str]) -> int:
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


def render(summary: dict[str, Any], console: Console) -> None:
    """Print a plan."""
    for key, levels in summary["factors"].items():
        console.print(f"  {key}: {', '.join(str(level) for level in levels)}")
    again = summary["scored_again"]
    further = f", {again} for further scores of another cell's run" if again else ""
    bases = summary["bases"]
    added = f" ({summary['cells'] - bases} of the grid and {_untouched(bases)})" if bases else ""
    console.print(
        f"{summary['cells']} cells{added} are {summary['runs']} runs "
        f"({len(summary['aliases'])} aliases{further}): "
        f"{summary['done']} done, {summary['failed']} failed, {summary['to_do']} to do"
        f"{_rescored(summary)}",
        soft_wrap=True,
    )
    for key, fault in list(summary["damaged"].items())[:SHOWN]:
        console.print(f"  damaged, to be trained again: {key} ({escape(fault)})", soft_wrap=True)
    if len(summary["damaged"]) > SHOWN:
        console.print(f"  and {len(summary['damaged']) - SHOWN} more are damaged")
    if summary["illegal"]:
        console.print(f"{len(summary['illegal'])} further cells are illegal and left out")
    _render_names(summary, console)
    _render_adapters(summary["adapters"], console)
    for rate in summary["own_rates"]:
        console.print(f"  learning rate tuned for {rate}", soft_wrap=True, highlight=False)
    for line in (
        *_about_models(summary["models"]),
        *_items(summary["scored"]),
        *_costs(summary),
    ):
        console.print(line, soft_wrap=True, highlight=False)
    for assumed in summary["assumed"]:
        console.print(f"  assumed: {assumed}", soft_wrap=True, highlight=False)
    if summary["assumed"]:
        console.print("  so runs that are recorded already are not recognised here")
    for note in summary["notes"]:
        console.print(f"[bold]note[/bold] {escape(note)}", soft_wrap=True)
    planning.render(summary, console)


def _rescored(summary: dict[str, Any]) -> str:
    """Return how many of the runs to do are only scored again; nothing where all train."""
    train = summary["to_train"]
    if train == summary["to_do"]:
        return ""
    return f" ({train} to train, {summary['to_do'] - train} to score only)"


def _untouched(bases: int) -> str:
    return "the untouched base" if bases == 1 else f"{bases} untouched bases"


def _about_models(models: list[dict[str, Any]]) -> Iterator[str]:
    for model in models:
        if model["tied"]:
            yield f"  {model['model']}: token embedding and head are one matrix"
        for name in model["fused"]:
            yield f"  {model['model']}: {name} holds several projections, which change together"


def _items(scored: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line on the items of every benchmark that a run is scored on."""
    if not scored:
        return
    told = [f"{Path(one['task']).name} {_count(one)}" for one in scored[:SHOWN]]
    more = f" and {len(scored) - SHOWN} more" if len(scored) > SHOWN else ""
    limits = sorted({one["limit"] for one in scored if one["limit"]})
    limit = f"; limit {' or '.join(f'{n:,}' for n in limits)} items a task" if limits else ""
    yield f"items scored a run: {', '.join(told)}{more}{limit}"


def _count(one: dict[str, Any]) -> str:
    if one["of"] is None:
        return f"{one['items']:,} (assumed)"
    return f"{one['items']:,}" + f" of {one['of']:,}" * (one["items"] < one["of"])


def _costs(summary: dict[str, Any]) -> Iterator[str]:
    yield (
        f"about {duration(summary['core_seconds'])} of one worker on this machine, "
        f"{summary['memory_mb']:,} MB of its memory a run (from {summary['basis']})"
    )
    for failed in summary.get("not_probed", ()):
        yield f"  not probed: {failed}"
    yield f"or {summary['gpu_hours']:g} GPU-hours of an A100 used to 40 %{_several(summary)}"
    parts = ", ".join(f"{k} {_size(mb)}" for k, mb in summary["gpu_memory_parts_mb"].items())
    of = f"{_size(summary['gpu_limit_mb'])} ({summary['gpu_limit_from']})"
    rows = summary["micro_batch_rows"]
    split = f", {rows} row{'s' * (rows > 1)} a forward pass" if rows else ""
    yield f"the largest run takes {_size(summary['gpu_memory_mb'])} of a GPU's {of}{split}: {parts}"
    yield from _too_large(summary)
    to_get = f", {_size(summary['download_mb'])} to download" if summary["download_mb"] else ""
    yield f"disk: {_size(summary['disk_mb'])} for results{to_get}"


def _several(summary: dict[str, Any]) -> str:
    """Return what several GPUs are worth; nothing of what takes less than an hour."""
    if summary["gpu_hours"] < 1:
        return ""
    hours = ", ".join(f"{h:g} h on {n}" for n, h in summary["hours_on_gpus"].items())
    return f"; a run takes one GPU, and GPUs take runs side by side: {hours}"


def _too_large(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the runs that no GPU of that size holds, those with the same cures in one line."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for one in summary["too_large"]:
        alike.setdefault(tuple(one["fits_with"]), []).append(one)
    for runs in list(alike.values())[:SHOWN]:
        largest = max(runs, key=lambda one: one["memory_mb"])
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        cures = [f"{k} ({_size(mb)})" for k, mb in largest["fits_with"].items()]
        cure = "fits with " + ", or with ".join(cures) if cures else "no setting makes it fit"
        yield (
            f"  more than one GPU holds ({_size(largest['memory_mb'])}): {largest['cell']}{more}; "
            f"{cure}"
        )
    if len(alike) > SHOWN:
        yield f"  and {sum(map(len, list(alike.values())[SHOWN:]))} more runs"


def _size(mb: float) -> str:
    return f"{mb:,.0f} MB" if mb < 10_000 else f"{mb / 1000:,.1f} GB".replace(".0 GB", " GB")


def _render_names(summary: dict[str, Any], console: Console) -> None:
    aliases = summary["aliases"]
    for alias in aliases[:SHOWN]:
        console.print(f"  [dim]{alias['cell']} is {alias['is']}[/dim]")
    if len(aliases) > SHOWN:
        console.print(f"  [dim]and {len(aliases) - SHOWN} more aliases[/dim]")
    for illegal in summary["illegal"][:SHOWN]:
        console.print(f"  illegal: {illegal['reason']}")


def _render_adapters(rows: list[dict[str, Any]], console: Console) -> None:
    shown = Table("model", "adapter", box=None)
    for name in ("rank", "trained", "of model", "LoRA's\nbudget", "ratio", "lr"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(
            row["model"],
            _arm(row),
            str(row["rank"] or "-"),
            f"{row['trainable']:,}",
            f"{row['share']:.1%}",
            f"{row['budget_asked']:,}" if row["budget_asked"] else "-",
            f"{row['ratio']:.3f}" if row["ratio"] else "-",
            f"{row['lr']:.2g}{' untuned' * row['untuned']}" if row["lr"] else "-",
        )
    console.print(shown)


def _arm(row: dict[str, Any]) -> str:
    """Return an adapter's name, with its placement, optimizer and embeddings where not as usual."""
    if not row["trainable"]:
        return str(row["adapter"])
    further = [row[key] for key, usual in USUAL.items() if row[key] != usual]
    told = row["trains_base"] or row["embeddings"] != "frozen"
    further += [f"embeddings {row['embeddings']}"] * told
    return f"{row['adapter']} ({', '.join(further)})" if further else str(row["adapter"])


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
)
