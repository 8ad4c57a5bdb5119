"""What was run: grid, aliases, failures, learning rates and cost, counted from the raw table."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from ablate.results.spreadsheet import read_back
from analysis.report import chosen_items, generated_code, lost_rows, words
from analysis.report.page import Block, Section, Sheet, Text
from analysis.report.tables import Table
from analysis.table.carried import with_carried
from analysis.table.factors import in_order, level_columns, own_columns, part_of
from analysis.table.frame import rates
from analysis.table.records import read_record

KEY = "run"
MANY_LEVELS = 12
MICRO = "micro_"  # how the benchmarks of the micro world begin


def section(raw: pd.DataFrame, folder: Path | None) -> Section:
    """Return what was run according to the results table `raw`, whose folder is `folder`."""
    cells = raw.drop_duplicates(level_columns(raw))
    said = " ".join([_sentence(raw, cells), *_sampled(raw, folder), *_scored(raw)])
    blocks: list[Block] = [Text(said), Sheet(_grid(cells), open=True)]
    lost = [_failures(cells, folder), _unscored(cells, folder)]
    tables = [_aliases(cells), lost_rows.table(raw, folder), *lost, _cells(cells), _cost(cells)]
    blocks += [Sheet(table) for table in tables if len(table.frame)]
    return Section(KEY, "What was run", (*blocks, *_rates(cells, folder)))


def _scored(raw: pd.DataFrame) -> list[str]:
    """Return what is to be known of how benchmarks were scored, a sentence each."""
    return [*chosen_items.sentence(raw), *generated_code.sentence(raw)]


def design(raw: pd.DataFrame) -> str:
    """Return what was run as the methods of a paper say it."""
    n = counts(raw)
    reach = ", ".join(
        words.count(n[f"{noun}s"], noun) for noun in ("base model", "data set", "seed", "task")
    )
    more = "".join(f" {text}" for text in _scored(raw))
    return (
        f"{words.count(n['runs'], 'run')} over {reach}.{more} Runs of one seed share the order "
        "of their examples within a data set. Cells that are the same run under several names were "
        "trained and counted once. Scores are in points (0 to 100), higher is better, one primary "
        "metric per task. PLW is the weight that the loss in fact gives to prompt tokens, 0 for "
        "masking=instruction, and w_p = PLW^0.30103 (Huerta-Enochian and Ko, arXiv 2401.13586)."
    )


def counts(raw: pd.DataFrame) -> dict[str, int]:
    """Return how many cells, runs, aliases and failures there are, and how far they reach."""
    cells = raw.drop_duplicates(level_columns(raw))
    trained = cells[_column(cells, "adapter") != "none"]
    done = trained[_column(trained, "status", "done") == "done"]
    runs = int(done["train_key"].nunique())
    return {
        "cells": len(trained),
        "runs": runs,
        "aliases": len(done) - runs,
        "not finished": len(trained) - len(done),
        "seeds": int(_column(done, "seed").nunique()),
        "base models": int(_column(with_carried(done), "model").nunique()),
        "data sets": int(_column(with_carried(done), "dataset").nunique()),
        "tasks": int(_bench(raw)["task"].nunique()),
    }


def shown(cells: pd.DataFrame) -> list[str]:
    """Return the levels and settings that a table names a cell by.

    The learning rate is one of them where it varies within an arm; else each arm has its own.
    """
    swept = "lr" in cells and bool((rates(cells) != 0).any())
    fixed = "train" in cells and cells["train"].nunique() < 2
    hidden = [n for n, left in (("lr", not swept), ("train", fixed)) if left]
    return [n for n in level_columns(cells) if n not in hidden]


def varied(cells: pd.DataFrame) -> list[str]:
    """Return what varies and tells cells apart that are means over seeds and base models."""
    return [n for n in shown(cells) if n not in ("seed", "model") and cells[n].nunique() > 1]


def _bench(raw: pd.DataFrame) -> pd.DataFrame:
    kind = _column(raw, "task_type")
    return raw[kind.isin(["mc", "short", "long"])]


def _column(frame: pd.DataFrame, name: str, default: str = "") -> "pd.Series[str]":
    if name not in frame:
        return pd.Series(default, frame.index, dtype=str)
    return frame[name].astype(str)


def _tasks(raw: pd.DataFrame) -> str:
    """Return how many tasks a run was scored on: "6 tasks", "3 to 6 tasks"."""
    bench = _bench(raw)
    trained = bench[_column(bench, "adapter") != "none"]
    per_run = trained.groupby("train_key", observed=True)["task"].nunique()
    most = words.count(int(per_run.max()), "task") if len(per_run) else "no task"
    same = len(per_run) == 0 or per_run.min() == per_run.max()
    return most if same else f"{int(per_run.min())} to {most}"


def _sentence(raw: pd.DataFrame, cells: pd.DataFrame) -> str:
    n = counts(raw)
    items = _bench(raw)["n"].dropna() if "n" in raw else pd.Series(dtype=float)
    each = f" of {int(items.median())} items" if len(items) else ""
    text = f"The grid names {words.count(n['cells'], 'cell')}: {words.count(n['runs'], 'run')}"
    text += f", each scored on {_tasks(raw)}{each}" if n["tasks"] else ""
    if n["aliases"]:
        same = "the same run under another name, which is not counted again"
        text += f"; {words.count(n['aliases'], 'alias')} ({same})"
    if n["not finished"]:
        text += f"; {n['not finished']} without a result, listed below"
    bases = int((_column(cells, "adapter") == "none").sum())
    return text + (". The untouched base was scored too." if bases else ".")


def _sampled(raw: pd.DataFrame, folder: Path | None) -> Iterator[str]:
    """Say of which benchmarks only a part of the items was scored, the micro world's left out."""
    bench = _bench(raw)
    bench = bench[~_column(bench, "task").str.startswith(MICRO)] if folder else bench[:0]
    for _, row in bench.drop_duplicates([n for n in ("task", "n") if n in bench]).iterrows():
        scores = read_record(folder, row["train_key"]).get("scores", ())
        own = (one for one in scores if (one["task"], one["n"]) == (row["task"], row["n"]))
        every = {one["of"] for one in own if one.get("of") and not one.get("chosen")}
        if len(every) == 1 and (total := every.pop()) > row["n"]:
            yield f"{row['task']} was scored on the first {row['n']:,.0f} of {total:,} items."


def _grid(cells: pd.DataFrame) -> Table:
    rows = []
    trained = cells[_column(cells, "adapter") != "none"]
    for name in shown(trained):
        if trained[name].notna().any():
            found = sorted(trained[name].dropna().unique(), key=in_order)
            levels = _listed(found) + _changed(name, trained)
            rows.append({"factor": name, "count": len(found), "levels": levels})
    frame = pd.DataFrame(rows)
    note = "Factors with one level are settings of this study, not something it compares."
    return Table("grid", "Factors and their levels", frame, note, {"count": "levels, number"})


def _changed(name: str, cells: pd.DataFrame) -> str:
    """Say which settings of a group were given on their own: its name does not tell them."""
    settings = [n for n in shown(cells) if n.startswith(f"{name}.") and cells[n].notna().any()]
    return f" (but {', '.join(settings)} as given)" if settings else ""


def _listed(values: Sequence[object]) -> str:
    words = [f"{v:g}" if isinstance(v, float) else str(v) for v in values[:MANY_LEVELS]]
    more = f" and {len(values) - MANY_LEVELS} more" if len(values) > MANY_LEVELS else ""
    return ", ".join(words) + more


def _aliases(cells: pd.DataFrame) -> Table:
    """Say which names are one run; replicates and base models are named once."""
    names = [n for n in shown(cells) if n not in ("seed", "model")]
    done = cells[cells["train_key"].notna() & (_column(cells, "adapter") != "none")]
    again = done.duplicated("train_key")
    first = done[~again].set_index("train_key")[names]
    others = done[again]
    rows = []
    for record in others.to_dict("records"):
        own = first.loc[record["train_key"]]
        changed = [n for n in names if str(record[n]) != str(own[n])]
        if changed:
            same = ", ".join(f"{n}={_text(own[n])}" for n in changed)
            rows.append({n: _text(record[n]) for n in varied(cells)} | {"same run as": same})
    frame = pd.DataFrame(rows).drop_duplicates() if rows else pd.DataFrame()
    title = "Aliases: further names of a run"
    return Table(
        "aliases", title, frame, "Found from the tokens' roles and weights, not from names."
    )


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _failures(cells: pd.DataFrame, folder: Path | None) -> Table:
    status = _column(cells, "status", "done")
    lost = cells[status != "done"]
    names = [n for n in shown(cells) if cells[n].nunique() > 1]
    frame = lost[[*names, "status"]].reset_index(drop=True) if len(lost) else pd.DataFrame()
    if len(lost) and folder is not None:
        frame["error"] = [_error(folder, str(key)) for key in lost["train_key"]]
    return Table("failures", "Cells without a result", frame)


def _error(folder: Path, key: str) -> str:
    """Return the last line of the last failed attempt, as the store recorded it."""
    attempts = sorted((folder / "failures").glob(f"{key}-*.json"))
    if not attempts:
        return ""
    try:
        error = json.loads(attempts[-1].read_text(encoding="utf-8"))["error"]
    except (OSError, ValueError, KeyError, TypeError):
        return "what is written of the failure is damaged"
    return str(error).strip().splitlines()[-1] if str(error).strip() else ""


def _unscored(cells: pd.DataFrame, folder: Path | None) -> Table:
    """Return the scores that failed in runs that were trained, as their records name them."""
    rows = []
    names = [n for n in shown(cells) if cells[n].nunique() > 1]
    done = cells[_column(cells, "status", "done") == "done"] if folder else cells[:0]
    for _, cell in done.drop_duplicates("train_key").iterrows():
        record = read_record(folder, cell["train_key"])
        levels = {name: cell[name] for name in names}
        rows += [
            levels | {"task": one["asked"], "error": one["error"]}
            for one in record.get("unscored", ())
        ]
    return Table("unscored", "Scores that failed", pd.DataFrame(rows))


def _cells(cells: pd.DataFrame) -> Table:
    done = cells[
        (_column(cells, "status", "done") == "done") & (_column(cells, "adapter") != "none")
    ]
    alias = done.duplicated("train_key")
    done = with_carried(done)
    names = own_columns(done, varied(done))
    if not names or not len(done):
        return Table("cells", "Cells", pd.DataFrame())
    grouped = done.assign(alias=alias).groupby(names, sort=False, dropna=False)
    frame = grouped.agg(names=("train_key", "size"), aliases=("alias", "sum")).reset_index()
    frame["runs"] = frame["names"] - frame.pop("aliases")
    return Table("cells", "Every cell and its runs", frame.drop(columns="names"))


def _cost(cells: pd.DataFrame) -> Table:
    """Say what a run of each adapter costs, and all runs together."""
    wanted = {
        "train_seconds": "training, s", "eval_seconds": "evaluation, s",
        "tokens_per_second": "tokens/s", "peak_mb": "peak memory, MB",
        "trainable_parameters": "trainable parameters", "clipped_share": "clipped steps",
        "grad_norm_mean": "gradient norm", "completion_grad_share": "completion's gradient share",
    }  # fmt: skip
    names = [n for n in wanted if n in cells and cells[n].notna().any()]
    runs = with_carried(cells[_column(cells, "adapter") != "none"].drop_duplicates("train_key"))
    arm = [n for n in own_columns(runs, varied(runs)) if part_of(n) == "arm"]
    by = [n for n in ("adapter", "rank") if n in runs]
    by += [n for n in arm if n not in by]
    if not names or not by:
        return Table("cost", "Cost", pd.DataFrame())
    if "rank" in runs:
        runs = runs.assign(rank=runs["rank"].mask(_column(runs, "adapter") == "full"))
    grouped = runs.groupby(by, sort=False, dropna=False)
    frame = grouped[names].mean().reset_index()
    frame.insert(len(by), "runs", grouped.size().to_numpy())
    total = runs[[n for n in names if n.endswith("_seconds")]].sum().sum() / 3600
    note = (
        f"Means over runs. All runs together took {total:.2g} hours of one worker's time."
        f"{words.full_trains(cells)}"
    )
    formats = {"train_seconds": ".1f", "eval_seconds": ".1f", "clipped_share": ".0%"}
    return Table("cost", "What a run costs", frame, note, wanted, formats)


def _rates(cells: pd.DataFrame, folder: Path | None) -> list[Block]:
    """Say which learning rate every adapter had, and how it was chosen where that is known."""
    blocks: list[Block] = []
    tuned = folder / "tuned.csv" if folder is not None else None
    if tuned is not None and tuned.is_file():
        note = "Chosen by the loss on a validation split and with a seed that no report uses."
        title = "How the learning rates were chosen"
        heads = {"lr": "learning rate", "loss": "validation loss", "edge": "at the edge"}
        table = Table("tuning", title, read_back(pd.read_csv(tuned)), note, heads, {"loss": ".4f"})
        blocks.append(Sheet(table))
    names = [n for n in ("dataset", "adapter", "rank", "lr") if n in cells]
    if "lr" in names:
        used = with_carried(cells[_column(cells, "adapter") != "none"].dropna(subset=["lr"]))
        note = "One rate for all adapters would confound the adapter with its rate."
        if _column(used, "untuned").eq("True").any():
            names.append("untuned")
            note += (
                " A rate marked untuned is a default by adapter and width of the model: a "
                "difference between adapters may be one of their rates."
            )
        if _column(used, "full_rate").eq("True").any():
            names.append("full_rate")
            note += (
                " A rate marked full_rate was given to an adapter and is one of full tuning, about "
                "a tenth of what suits an adapter: a difference between adapters may be one of "
                "their rates."
            )
        used = used.drop_duplicates("train_key")[names].drop_duplicates()
        table = Table("learning_rates", "Learning rates used", used, note, {"lr": "learning rate"})
        blocks += [Sheet(table)] if len(used) else []
    return blocks
