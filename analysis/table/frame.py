"""The long-format frame that everything else in `analysis` starts from.

`load` reads the results table of `ablate`, or any CSV or parquet table that has a score column.
From a results table it keeps every run once (a run that is reached under several names is counted
under the first), one primary metric per benchmark, and adds

    score       points, higher is better: fractions times 100, the sign turned where low is good
    wp          effective PLW ^ 0.30103, the PLW paper's scale; 0 for masking=instruction
    mode        the masking mode whose curve a row belongs to; at PLW 0 all modes are one
    run         the trained run a score belongs to
    log2_rank   log2(rank / r0), 0 for full tuning; r0 is in `frame.attrs["rank0"]`
    adapter     the arm: the adapter's level, with its init and optimizer where those are not the
                usual ones; the level alone is in `method`
    rate        the learning rate, or 0 where it does not vary within an arm (it was tuned)
    task_group  task_type, with the side where one type has tasks on both sides
    curved      1 where the mode has two levels above PLW 0, else 0: a line is all it can show
    control     "", or "sham", "placebo", "shuffled": rows that the main model leaves out
    is_base     the untouched base model

`mode` and `curved` come from `study_rows`, which leaves out the controls and the base. What was
left out, and why, is in `frame.attrs["notes"]`, a sentence each.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ablate.results.record import LEVELS as LEVELS
from ablate.results.record import WP_EXPONENT as WP_EXPONENT
from analysis.errors import AnalysisError, as_file, as_path, listed, nearest, told
from analysis.table import states
from analysis.table.carried import with_carried, with_reference
from analysis.table.columns import NEEDED, is_results, plain_types, read_text
from analysis.table.factors import BASE, FULL, is_number, is_setting, level_columns, varying
from analysis.table.metrics import preference
from analysis.table.outcome import as_outcome

ROUNDED = 0.005  # how far a stored w_p may be from PLW^0.30103
CURVED = 2  # levels above PLW 0 that a curve through the common intercept needs
SCORED = ("mc", "short", "long")  # task types that are benchmarks
NUMBERS = ("plw", "rank", "lr", "rate", "completion_weight")  # levels that stay numbers
# Columns beside the levels that hold names.
GROUPS = ("method", "dataset_type", "task", "task_type", "side", "skill", "study")
IN_POINTS = ("bleu", "ter")  # 0 to 100, even where a poor model leaves all of them below 1


def load(path: str | Path, score: str | None = None) -> pd.DataFrame:
    """Return the prepared frame of a results table, or of any table with a score column.

    Args:
        path: a .parquet, .csv or .tsv file, or a folder with results.parquet in it.
        score: the score column; may be left out for our own tables and where it is `score`.

    Raises:
        AnalysisError: nothing there, not readable, no such column, a score that is not a number.
    """
    table = read(path)
    if score is None and is_results(table.columns):
        return from_results(table)
    return from_table(table, score or "score")


def read(path: str | Path) -> pd.DataFrame:
    """Return the table in a file as it stands."""
    file = as_path("table", path)
    file = file / "results.parquet" if os.path.isdir(file) else file
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".parquet": pd.read_parquet,
        ".csv": read_text,
        ".tsv": lambda f: read_text(f, "\t"),
    }
    as_file("table", file)
    if file.suffix not in readers:
        raise AnalysisError(f"table={file}: must end in one of {listed(readers)}")
    try:
        table = readers[file.suffix](file)
    # pandas' and pyarrow's own errors are of the first two kinds; the others are of odd content
    except UnicodeDecodeError:
        raise AnalysisError(f"table={file}: is no text in UTF-8; write it anew in UTF-8") from None
    except (ValueError, OSError, NotImplementedError, OverflowError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        raise AnalysisError(f"table={file}: cannot be read: {reason}") from error
    if table.empty:
        raise AnalysisError(f"table={file}: has no rows")
    return plain_types(table)


def from_table(table: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return an external table with its score column as numbers, and `wp` where it has a PLW.

    The score stands also as `score`, unless the table has another column of that name; the names
    that it stands under are in `frame.attrs["names"]`. A column `wp` of the table's own is kept as
    it is; `frame.attrs["own_wp"]` says that nothing in the table shows it to be PLW^0.30103.
    """
    table, notes = _finished(plain_types(table))
    if score not in table:
        numbers = table.select_dtypes("number").columns
        raise AnalysisError(
            f"score={score}: no such column; columns of numbers are {listed(numbers) or 'none'}."
            f"{nearest(score, table.columns)}"
        )
    outcome, said = as_outcome(table[score])
    values = pd.to_numeric(outcome, errors="coerce")
    broken = values.isna() & table[score].notna()
    if broken.any():
        raise AnalysisError(
            f"score={score}: {told(table[score][broken].iloc[0])!r} is not a number"
        )
    kept = values.notna() & np.isfinite(values)
    notes += _note(int(values.isna().sum()), "rows without a score were left out")
    notes += _note(int(np.isinf(values).sum()), "rows with an infinite score were left out")
    if not kept.any():
        what = "empty" if values.isna().all() else "empty or infinite"
        raise AnalysisError(f"score={score}: every row is {what}")
    names = [score] if "score" in table else [score, "score"]
    frame = table.assign(**dict.fromkeys(names, values))[kept].reset_index(drop=True)
    twice = int(frame.duplicated().sum())
    notes += _note(twice, "rows repeat another row exactly; they were kept, check the table")
    try:
        frame = _with_wp(frame)
    except AnalysisError:
        notes += ["plw is not between 0 and 1 in every row: it is taken as any other number."]
    infinite = int(np.isinf(values).sum())
    frame.attrs = {"notes": notes, "score": score, "names": names, "infinite": infinite}
    frame.attrs["own_wp"] = "wp" in table and not _is_w_p(table)
    frame.attrs["said"] = [f"The outcome {score}: {said}."] if said else []
    return frame


def _finished(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return a table without runs that did not end, and a note on them; whole where none did."""
    late = states.unfinished(table)
    if not late.any() or late.all():
        return table, []
    return table[~late], [f"Runs were left out: {states.said(table, late)}."]


def from_results(table: pd.DataFrame) -> pd.DataFrame:
    """Return the prepared frame of a results table: see the module's docstring."""
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise AnalysisError(f"table: no column {listed(missing)}; it has {listed(table.columns)}")
    table = plain_types(table)
    present = table[table["value"].notna()]
    notes = _note(len(table) - len(present), "rows without a value were left out")
    once = _each_run_once(present)
    left_out = _not_varying(present, once)
    notes += _note(len(present) - len(once), "rows are another name of a run that is here already")
    kept = _primary_metrics(once)
    notes += _note(len(once) - len(kept), "rows of secondary metrics were left out")
    if kept.empty:
        raise AnalysisError(
            "table: no run has a score; evaluate.heldout, evaluate.tasks and evaluate.measures of "
            "a sweep ask for them"
        )
    frame = _with_score(_with_factors(kept.reset_index(drop=True)))
    notes += _unit_notes(frame)
    frame.attrs |= {"notes": notes, "left_out": left_out}
    return frame


def study_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the main model: trained runs on benchmarks, without the controls."""
    kept = (frame["control"] == "") & ~frame["is_base"] & frame["task_type"].isin(SCORED)
    rows = frame[kept].reset_index(drop=True)
    if rows.empty:
        raise AnalysisError("table: no trained run has a benchmark score")
    for name in rows.columns[[isinstance(t, pd.CategoricalDtype) for t in rows.dtypes]]:
        rows[name] = rows[name].cat.remove_unused_categories()
    # Runs without a benchmark may have tried rates where these have one that was tuned.
    rows = rows.assign(mode=_modes(rows), rate=rates(rows))
    rows = with_reference(rows)
    # One PLW is another w_p on each data set where a mode weights a part of the prompt.
    doses = rows[rows["wp"] > 0].groupby(["mode", "dataset"], observed=True)["wp"].nunique()
    curved = rows["mode"].astype(str).map(doses.groupby("mode", observed=True).max() >= CURVED)
    # An adapter that ran at one rank has no slope over rank to estimate.
    ranks = rows.groupby("adapter", observed=True)["log2_rank"].transform("nunique")
    slope = rows["log2_rank"].where(ranks > 1, 0.0)
    return rows.assign(curved=curved.eq(True).astype(float), log2_rank=slope)


def plw_of(wp: float) -> float:
    """Return the prompt loss weight whose w_p this is; NaN below zero."""
    return float(wp ** (1 / WP_EXPONENT)) if wp >= 0 else float("nan")


def _note(count: int, what: str) -> list[str]:
    return [f"{count} {what}."] if count else []


def _each_run_once(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without aliases: one row per run, task and metric, under its first name."""
    first = table
    if "alias" in table:
        first = table.sort_values("alias", kind="stable")
    return first.drop_duplicates(["train_key", "task", "metric"]).sort_index()


def _not_varying(table: pd.DataFrame, once: pd.DataFrame) -> list[str]:
    """Return a sentence for every column that varies over names, but not over runs or scores."""
    trained = [t[t["adapter"].astype(str) != BASE] if "adapter" in t else t for t in (table, once)]
    found = []
    for name in varying(trained[0]):
        if name in varying(trained[1]):
            continue
        first = trained[1][name].dropna().astype(str).iloc[:1].tolist()
        kept = f"{name}={first[0]}" if first else "the first name"
        if name.startswith("evaluate."):
            text = f"{name} varies, but a run counts once: its scores are those with {kept}."
        else:
            text = (
                f"{name} varies, but does not change a run: its levels are names of the same runs."
            )
        found.append(text)
    return found


def _primary_metrics(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with one metric per benchmark; held-out losses and measures keep all."""
    bench = table["task_type"].isin(SCORED) if "task_type" in table else table["task"].notna()
    names = table[bench].groupby("task", observed=True)["metric"].unique()
    chosen = {task: min(found, key=preference) for task, found in names.items()}
    return table[~bench | (table["metric"] == table["task"].map(chosen))]


def _with_score(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with `score`, `score_se` and `score_chance` in points, higher is better.

    `to_points` is what a value is multiplied by. Losses and measures stay as they are.
    """
    bench = frame["task_type"].isin(SCORED)
    unit = frame["unit"].astype("string") if "unit" in frame else pd.Series(pd.NA, frame.index)
    known = unit.notna()
    fraction = (known & unit.eq("fraction").fillna(False)) | (~known & _looks_like_fractions(frame))
    scale = np.where(bench & fraction.astype(bool), 100.0, 1.0)
    low_is_good = ~frame.get("higher_is_better", pd.Series(True, frame.index)).astype(bool)
    sign = np.where(bench & low_is_good, -1.0, 1.0)
    empty = pd.Series(np.nan, frame.index)
    return frame.assign(
        score=frame["value"] * scale * sign,
        score_se=frame.get("se", empty) * scale,
        score_chance=frame.get("chance", empty) * scale * sign,
        to_points=scale * sign,
    )


def _looks_like_fractions(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows are of a metric whose values all lie between 0 and 1.

    For tables and records that do not state a score's unit.
    """
    group = frame.groupby(["task", "metric"], observed=True)["value"]
    inside = group.transform("min").ge(0) & group.transform("max").le(1)
    return inside & ~frame["metric"].str.split(",").str[0].isin(IN_POINTS)


def _unit_notes(frame: pd.DataFrame) -> list[str]:
    """Return a sentence on the benchmarks whose unit is not stated."""
    bench = frame[frame["task_type"].isin(SCORED)]
    unstated = bench if "unit" not in bench else bench[bench["unit"].isna()]
    tasks = unstated["task"].astype(str).unique()
    if not len(tasks):
        return []
    return [
        f"The unit of {len(tasks)} tasks' scores is not stated: they are taken for fractions "
        f"where all values lie between 0 and 1, else for points."
    ]


def _with_factors(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the derived columns and with categories for factors."""
    frame = _with_wp(table)
    defaults: dict[str, str | int] = {
        "task_type": "mc", "side": "both", "adapter": "full", "masking": "none", "rank": 1,
        "dataset": "data", "model": "model", "sham": "a", "seed": 0, "dataset_type": "data",
        "shuffle_prompts": False,
    }  # fmt: skip
    for name, value in defaults.items():
        if name not in frame:
            frame[name] = pd.Series(value, frame.index)
    if "plw" not in frame and "wp" in frame:
        frame["plw"] = frame["wp"] ** (1 / WP_EXPONENT)
    frame = with_carried(frame.assign(method=frame["adapter"].astype(str)))
    frame["is_base"] = frame["method"].eq(BASE)
    frame["control"] = _controls(frame)
    frame["run"] = frame["train_key"].astype(str)
    ranked = ~frame["method"].isin([FULL, BASE])
    ranks = np.unique(frame.loc[ranked, "rank"].astype(float))
    rank0 = float(np.exp2(np.median(np.log2(ranks)))) if len(ranks) else 1.0
    frame["log2_rank"] = np.where(ranked, np.log2(frame["rank"].astype(float) / rank0), 0.0)
    frame["task_group"] = _task_groups(frame)
    frame["rate"] = rates(frame)
    for name in (*GROUPS, *level_columns(frame)):
        number = name in NUMBERS or (is_setting(name) and is_number(frame[name]))
        if name in frame and name not in ("control", "shuffle_prompts") and not number:
            frame[name] = frame[name].astype("category")
    frame.attrs["rank0"] = rank0
    return frame


def rates(frame: pd.DataFrame) -> pd.Series:
    """Return the learning rate where it is a factor, 0 where every arm has its own tuned one."""
    levels = ("adapter", "rank", "init", "optimizer", "token_rule", "dataset", "model", "train")
    arm = [n for n in level_columns(frame) if n in levels or is_setting(n)]
    own = frame.groupby(arm, observed=True, dropna=False)["lr"] if arm and "lr" in frame else None
    if own is None or own.nunique().max() < 2:
        return pd.Series(0.0, frame.index)
    return pd.to_numeric(frame["lr"], errors="coerce")


def _with_wp(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with `wp`, from the effective PLW or else from PLW and masking."""
    if "wp" in frame:
        return frame.copy()
    weight = next(_weights(frame), None)
    if weight is None:
        return frame.copy()
    if not weight.dropna().between(0, 1).all():
        raise AnalysisError("plw: must lie between 0 and 1 in every row")
    return frame.assign(wp=weight**WP_EXPONENT)


def _weights(frame: pd.DataFrame) -> Iterator[pd.Series]:
    """Yield the prompt loss weight of every row: the effective one, then by PLW and masking."""
    if "effective_plw" in frame and pd.api.types.is_numeric_dtype(frame["effective_plw"]):
        yield frame["effective_plw"].astype(float)
    if "plw" in frame and pd.api.types.is_numeric_dtype(frame["plw"]):
        weight = frame["plw"].astype(float)
        if "masking" in frame:
            weight = weight.mask(frame["masking"].astype(str) == "instruction", 0.0)
        yield weight


def _is_w_p(table: pd.DataFrame) -> bool:
    """Return whether a table's own column `wp` is PLW^0.30103 of a PLW that stands beside it."""
    if not pd.api.types.is_numeric_dtype(table["wp"]):
        return False
    for weight in _weights(table):
        off = (weight.where(weight >= 0) ** WP_EXPONENT - table["wp"]).abs().dropna()
        if len(off) and off.max() <= ROUNDED:
            return True
    return False


def _controls(frame: pd.DataFrame) -> pd.Series:
    """Return which control a row belongs to, "" for none."""
    sham = frame["sham"].astype(str) != "a"
    placebo = frame["masking"].astype(str) == "placebo"
    shuffled = frame["shuffle_prompts"].astype(str).str.lower() == "true"
    names = np.select([placebo, shuffled, sham], ["placebo", "shuffled", "sham"], default="")
    return pd.Series(names, frame.index)


def _modes(rows: pd.DataFrame) -> pd.Series:
    """Return the masking mode of every row; at wp 0 any name will do, so it takes the first."""
    masking = rows["masking"].astype(str)
    curved = masking[rows["wp"] > 0]
    first = curved.value_counts().index[0] if len(curved) else "none"
    return masking.mask(rows["wp"] == 0, first).astype("category")


def _task_groups(frame: pd.DataFrame) -> pd.Series:
    bench = frame[frame["task_type"].isin(SCORED)]
    sides = bench.groupby("task_type", observed=True)["side"].nunique()
    both = (sides > 1).any()
    types = frame["task_type"].astype(str)
    return (types + " " + frame["side"].astype(str) if both else types).astype("category")
