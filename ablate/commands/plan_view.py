"""What `ablate plan` prints: a summary as text that fits a terminal of 80 columns."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from ablate.commands import planning
from ablate.terminal import duration, paragraph

USUAL = {"placement": "all", "optimizer": "adamw"}  # what an adapter's row need not say
SHOWN = 8  # aliases, illegal cells and the like that are listed


def render(summary: dict[str, Any], console: Console) -> None:
    """Print a plan."""
    for line in (*_cells(summary), *_aliases(summary["aliases_by_kind"]), *_amounts(summary)):
        paragraph(console, line)
    _render_adapters(summary, console)
    for line in (
        *(f"  learning rate tuned for {rate}" for rate in summary["own_rates"]),
        *_items(summary["scored"]),
        *_costs(summary),
        *(f"  assumed: {assumed}" for assumed in summary["assumed"]),
        *["  so runs that are recorded already are not recognised here"] * bool(summary["assumed"]),
    ):
        paragraph(console, line)
    for note in summary["notes"]:
        paragraph(console, note, lead="note")
    planning.render(summary, console)


def _cells(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the factors, and a line on the cells, the runs that they are, and what is left."""
    for key, levels in summary["factors"].items():
        yield f"  {key}: {', '.join(str(level) for level in levels)}"
    again = summary["scored_again"]
    further = f", {again} for further scores of another cell's run" if again else ""
    bases = summary["bases"]
    added = f" ({summary['cells'] - bases} of the grid and {_untouched(bases)})" if bases else ""
    yield (
        f"{summary['cells']} cells{added} are {summary['runs']} runs "
        f"({len(summary['aliases'])} aliases{further}): "
        f"{summary['done']} done, {summary['failed']} failed, {summary['to_do']} to do"
        f"{_rescored(summary)}"
    )
    for key, fault in list(summary["damaged"].items())[:SHOWN]:
        yield f"  damaged, to be trained again: {key} ({fault})"
    if len(summary["damaged"]) > SHOWN:
        yield f"  and {len(summary['damaged']) - SHOWN} more are damaged"
    if summary["illegal"]:
        yield f"{len(summary['illegal'])} further cells are illegal and left out"
    for illegal in summary["illegal"][:SHOWN]:
        yield f"  illegal: {illegal['reason']}"


def _aliases(kinds: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each kind of cells that are other names of a run."""
    for kind in kinds[:SHOWN]:
        cells = f"{kind['count']} cell{'s' * (kind['count'] > 1)}"
        yield f"  {kind['levels']} is the same run as {kind['instead'] or 'another'} ({cells})"
    if left := sum(kind["count"] for kind in kinds[SHOWN:]):
        yield f"  and {left} more aliases"


def _amounts(summary: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each data set, base model and schedule: rows, tokens and steps of a run."""
    entries = summary["training"]
    several = len({one["model"] for one in entries}) > 1
    for one in entries[:SHOWN]:
        under = f" under model={one['model']}" * several
        about = "" if one["steps_exact"] else "about "
        batch = f"{one['batch_size']:,} {'rows' if one['batch_unit'] == 'examples' else 'tokens'}"
        epochs = f", {one['epochs']:g} epochs" if one["epochs"] else ""
        yield (
            f"training on dataset={one['dataset']}{under}: {one['rows']:,} rows, "
            f"{one['tokens']:,} tokens (the longest row {one['longest']:,}); a run takes "
            f"{about}{one['steps']:,} steps of {batch}{epochs}, {one['tokens_trained']:,} tokens"
        )
    if len(entries) > SHOWN:
        yield f"  and {len(entries) - SHOWN} more combinations of data, model and schedule"


def _rescored(summary: dict[str, Any]) -> str:
    """Return how many of the runs to do are only scored again; nothing where all train."""
    train = summary["to_train"]
    if train == summary["to_do"]:
        return ""
    return f" ({train} to train, {summary['to_do'] - train} to score only)"


def _untouched(bases: int) -> str:
    return "the untouched base" if bases == 1 else f"{bases} untouched bases"


def _items(scored: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a line on the items of every benchmark that a run is scored on."""
    if not scored:
        return
    told = [f"{Path(one['task']).name} {_count(one)}" for one in scored[:SHOWN]]
    more = f" and {len(scored) - SHOWN} more" if len(scored) > SHOWN else ""
    limits = sorted({one["limit"] for one in scored if one["limit"]})
    limit = f"; limit {' or '.join(f'{n:,}' for n in limits)} items a task" if limits else ""
    tables = dict.fromkeys(one["chosen"] for one in scored if one["chosen"])
    limit += f"; chosen by evaluate.items={', '.join(tables)}" if tables else ""
    yield f"items scored a run: {', '.join(told)}{more}{limit}"


def _count(one: dict[str, Any]) -> str:
    if one["of"] is None:
        return f"{one['items']:,} (assumed)"
    return f"{one['items']:,}" + f" of {one['of']:,}" * (one["items"] < one["of"])


def _costs(summary: dict[str, Any]) -> Iterator[str]:
    """Yield lines on time, the memory of a GPU and disk; first the machine that runs belong on."""
    if not summary["to_do"]:
        yield "nothing is left to do"
        return
    yield from _gpu_time(summary) if summary["on_gpu"] else _worker_time(summary)
    for failed in summary.get("not_probed", ()):
        yield f"  not probed: {failed}"
    if summary["on_gpu"]:
        a_run = duration(summary["core_seconds_a_run"])
        yield f"on a processor the longest run would take about {a_run}, an estimate from its size"
    else:
        yield from _gpu_time(summary)
    yield from _memory(summary)
    yield from _too_large(summary)
    told = [f"{_size(summary['disk_mb'])} for results"]
    told += [f"{_size(summary['download_mb'])} to download"] * bool(summary["download_mb"])
    told += [
        f"{_size(summary['checkpoint_mb'])} for the checkpoints of what a worker has under way "
        "(execution.checkpoint_minutes, execution.checkpoints_kept)"
    ] * bool(summary["checkpoint_mb"])
    yield f"disk: {', '.join(told)}"


def _worker_time(summary: dict[str, Any]) -> Iterator[str]:
    parts = summary["core_seconds_parts"]
    told = ", ".join(
        f"{name} {duration(parts[key])}"
        for key, name in (("train", "training"), ("score", "scoring"), ("rest", "all else"))
        if parts[key]
    )
    yield (
        f"about {duration(summary['core_seconds'])} of one worker on this machine ({told}), "
        f"{summary['memory_mb']:,} MB of its memory a run (from {summary['basis']})"
    )
    workers, start = summary["workers"], duration(summary["start_seconds"])
    yield (
        f"  about {duration(summary['wall_seconds'])} with the {workers} worker"
        f"{'s' * (workers > 1)} that a sweep has here by default, the start of each included "
        f"({start})"
    )


def _gpu_time(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the time of a GPU, and what it is estimated from."""
    hours, train = summary["gpu_hours"], summary["gpu_training_hours"]
    score = max(0.0, hours - train)
    if hours < 1:
        told, parts = duration(3600 * hours), [duration(3600 * part) for part in (train, score)]
    else:
        told, parts = f"{hours:.3g} GPU-hours", [f"{part:.3g}" for part in (train, score)]
    yield (
        f"{'about' if summary['on_gpu'] else 'or'} {told} of an {summary['gpu']}: training "
        f"{parts[0]}, scoring {parts[1]}{_several(summary)}"
    )
    source = "speeds measured there at 1.1 and 7 billion parameters in bf16 (docs/benchmarks.md)"
    how = f"from {source}" if summary["gpu_measured"] else f"an estimate, far from the {source}"
    yield f"  training: {how}; scoring: an estimate, an item as long as two rows"


def _several(summary: dict[str, Any]) -> str:
    """Return what several GPUs are worth; nothing of what takes less than an hour."""
    if summary["gpu_hours"] < 1:
        return ""
    hours = ", ".join(f"{h:g} h on {n}" for n, h in summary["hours_on_gpus"].items() if n > 1)
    n = summary["devices"]
    one = "one GPU" if n == 1 else f"{n} GPUs"
    return f"; a run takes {one}, and GPUs take runs side by side: {hours}"


def _memory(summary: dict[str, Any]) -> Iterator[str]:
    """Yield what training and scoring take of a GPU, in the run that needs most of it."""
    of = f"{_size(summary['gpu_limit_mb'])} ({summary['gpu_limit_from']})"
    each = " on each of its devices" if summary["devices"] > 1 else ""
    yield f"the largest run takes{each} {_size(summary['gpu_memory_mb'])} of a GPU's {of}"
    for what, parts, rows in (
        ("training", "gpu_memory_parts_mb", "micro_batch_rows"),
        ("scoring", "gpu_scoring_parts_mb", "scoring_rows"),
    ):
        if summary[parts]:
            count = summary[rows]
            told = ", ".join(f"{name} {_size(mb)}" for name, mb in summary[parts].items() if mb)
            yield (
                f"  {what} {_size(sum(summary[parts].values()))}, "
                f"{count:,} row{'s' * (count != 1)} a forward pass: {told}"
            )


def _too_large(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the runs that no GPU of that size holds, those with the same cures in one line."""
    from ablate.experiment.gpu_fit import LEAVE_OUT  # not where `--help` of a verb is answered

    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in summary["too_large"]:
        alike.setdefault((one["untouched"], *one["fits_with"]), []).append(one)
    for runs in list(alike.values())[:SHOWN]:
        largest = max(runs, key=lambda one: one["memory_mb"])
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        cures = [f"{k} ({_size(mb)})" for k, mb in largest["fits_with"].items()]
        cure = "fits with " + ", or with ".join(cures) if cures else "no setting makes it fit"
        base = all(one["untouched"] for one in runs)
        cure += f"; {LEAVE_OUT} leaves untouched bases out" * base
        name = f"the untouched base of {largest['cell']}, scored" if base else largest["cell"]
        yield (f"  more than one GPU holds ({_size(largest['memory_mb'])}): {name}{more}; {cure}")
    if len(alike) > SHOWN:
        yield f"  and {sum(map(len, list(alike.values())[SHOWN:]))} more runs"


def _size(mb: float) -> str:
    return f"{mb:,.0f} MB" if mb < 10_000 else f"{mb / 1000:,.1f} GB".replace(".0 GB", " GB")


def _render_adapters(summary: dict[str, Any], console: Console) -> None:
    """Print a table of adapters for each base model, without columns that hold nothing."""
    for model in summary["models"]:
        rows = [row for row in summary["adapters"] if row["model"] == model["model"]]
        paragraph(console, _about_model(model))
        columns = {name: [tell(row) for row in rows] for name, tell in COLUMNS.items()}
        columns = {name: own for name, own in columns.items() if name in KEPT or set(own) != {"-"}}
        shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        shown.add_column("")  # the indent
        for name in columns:
            justify: Literal["left", "right"] = "left" if name in WORDS else "right"
            shown.add_column(name, justify=justify, no_wrap=name != "adapter")
        for told in zip(*columns.values(), strict=True):
            shown.add_row("", *told)
        console.print(shown)


def _about_model(model: dict[str, Any]) -> str:
    """Return the size of a base model, and what its matrices share."""
    facts = [f"model={model['model']}: {model['parameters']:,} parameters"]
    facts += ["token embedding and head are one matrix"] * model["tied"]
    facts += [f"{n} holds several projections, which change together" for n in model["fused"]]
    return "; ".join(facts)


def _arm(row: dict[str, Any]) -> str:
    """Return an adapter's name, with its placement, optimizer and embeddings where not as usual."""
    if not row["trainable"]:
        return str(row["adapter"])
    further = [row[key] for key, usual in USUAL.items() if row[key] != usual]
    told = row["trains_base"] or row["embeddings"] != "frozen"
    further += [f"embeddings {row['embeddings']}"] * told
    return f"{row['adapter']} ({', '.join(further)})" if further else str(row["adapter"])


def _rate(row: dict[str, Any]) -> str:
    """Return what is to be known of a learning rate."""
    if row["lr"] is None:
        return "-"
    return "untuned" if row["untuned"] else "full's" if row["full_rate"] else "-"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {  # of the table of adapters
    "adapter": _arm,
    "rank": lambda row: str(row["rank"] or "-"),
    "trained": lambda row: f"{row['trainable']:,}",
    "of model": lambda row: f"{row['share']:.1%}",
    "LoRA's\nbudget": lambda row: f"{row['budget_asked']:,}" if row["budget_asked"] else "-",
    "ratio": lambda row: f"{row['ratio']:.3f}" if row["ratio"] else "-",
    "lr": lambda row: f"{row['lr']:.2g}" if row["lr"] else "-",
    "rate": _rate,
}
WORDS = ("adapter", "rate")
KEPT = ("adapter", "trained", "of model")  # columns that are shown whatever they hold
