"""The report of logs of other programs: models by benchmarks, and every model less the best one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.compare.benchmarks import Asked, Benchmark, benchmarks
from analysis.compare.estimate import compared
from analysis.compare.left_out import sentences
from analysis.compare.matched import Matched, matched
from analysis.compare.rows import MEAN, Row
from analysis.compare.verdict import OF
from analysis.errors import AnalysisError, as_path
from analysis.inference.crossed import items_variance
from analysis.inference.estimates import Estimate, equivalence, holm
from analysis.inference.shares import clustered_share
from analysis.logs.copies import counted_once
from analysis.logs.log import Log
from analysis.logs.read import read_logs
from analysis.report import build, first_screen
from analysis.report.headline import Headline, verdict
from analysis.report.page import Page, Section, Sheet, Text, write
from analysis.report.tables import P_VALUE, Table

ONE = "There is one model here, and nothing to compare it with; its scores stand below."
SCORES = ["model", "benchmark", "metric", "runs", "items", "score", "low", "high"]


@dataclass(frozen=True)
class Model:
    """A model with its runs."""

    name: str
    logs: tuple[Log, ...]


def build_logs(source: str | Path, out: str | Path, margin: float | None = None) -> Path:
    """Write the report of logs and return its index.html.

    Args:
        source: a file or folder that `analysis.logs.read` reads.
        out: the folder of the report; what an earlier one left there is replaced.
        margin: of equivalence, in points; None for no such test.

    Raises:
        AnalysisError: there is nothing to read, or it has no items.
    """
    logs = counted_once(read_logs(Path(source)), of_model=True)
    models = [
        Model(name, tuple(log for log in logs if log.model == name))
        for name in dict.fromkeys(log.model for log in logs)
    ]
    scores = pd.DataFrame([row for model in models for row in _scores(model)], columns=SCORES)
    if scores.empty:
        raise AnalysisError(
            f"{source}: its logs have no scores of items; lm-eval writes them with --log_samples, "
            f"Every Eval Ever has them in *_samples.jsonl; `ablate compare A B` compares two of "
            f"its models where errors are stated"
        )
    means = scores.groupby("model", sort=False)["score"].mean()
    best = str(means.idxmax())
    top = next(m for m in models if m.name == best)
    less = {model.name: _less(model, top) for model in models if model.name != best}
    found = [(name, rows) for name, (rows, _) in less.items() if rows]
    said = [note for log in logs for note in log.notes]
    said += [f"{name} − {best}: {note}" for name, (_, notes) in less.items() for note in notes]
    pairs = _pairs(found, margin)
    folder = as_path("out", out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnalysisError(f"out={out}: cannot be written ({error.strerror})") from error
    page = Page(
        title=f"Logs in {Path(source).name}",
        source=str(source),
        version=build.version(),
        first=first_screen.section(_headlines(pairs, best), nothing=ONE, method="none"),
        sections=tuple(_sections(scores, pairs, best, found)),
        facts=(
            ("models", f"{len(models):,}"),
            ("runs", f"{len(logs):,}"),
            ("benchmarks", f"{scores['benchmark'].nunique():,}"),
        ),
        warnings=tuple(("Logs.", note) for note in said),
        about="report of logs",
    )
    return write(page, folder)


def _scores(model: Model) -> list[tuple[object, ...]]:
    """Return the scores of one model with intervals for other items like these."""
    runs = Matched(model.logs, model.logs, len(model.logs))
    return [_score(model, one) for one in benchmarks(runs, Asked())]


def _score(model: Model, one: Benchmark) -> tuple[object, ...]:
    known_I = one.known_I
    score_SI = one.a_SI[:, known_I]
    runs, count = score_SI.shape
    low = high = mean = math.nan
    if count > 1:
        mean = float(score_SI.mean())
        weight_I = np.full(count, 1 / count)
        if one.binary:
            item = np.tile(np.arange(count), runs)
            ends = clustered_share(pd.Series(score_SI.ravel() / 100), pd.Series(item))
            low, high = 100 * ends[0], 100 * ends[1]
        else:
            variance = items_variance(score_SI.mean(axis=0), weight_I, np.zeros(count))
            found = Estimate("score", mean, math.sqrt(variance), count - 1.0)
            low, high = found.low, found.high
    return model.name, one.name, one.metric.removesuffix(",none"), runs, count, mean, low, high


def _less(model: Model, best: Model) -> tuple[tuple[Row, ...], list[str]]:
    """Return a model less the best one, and what was not compared, a sentence each."""
    try:
        found = compared(matched(best.logs, model.logs), Asked())
    except AnalysisError as error:
        return (), [f"not compared: {error}"]
    rows = (*found.rows, found.overall) if len(found.rows) > 1 else found.rows
    return rows, list(sentences(found.left_out))


def _pairs(found: Sequence[tuple[str, tuple[Row, ...]]], margin: float | None) -> pd.DataFrame:
    """Return a row per model and benchmark: the model less the best one."""
    rows = []
    for name, own in found:
        for row in own:
            if row.effect is None:
                continue
            same = "" if margin is None else equivalence(row.effect, margin).verdict
            rows.append({
                "model": name, "benchmark": row.name, "items": row.items,
                "estimate": row.effect.estimate, "low": row.effect.low, "high": row.effect.high,
                "p": row.effect.p, "mde": row.effect.mde, "down": row.down, "up": row.up,
                "mcnemar": row.mcnemar, "unpaired_p": row.p_apart, "same": same,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    if len(table):
        table.insert(list(table.columns).index("p") + 1, "p_holm", holm(table["p"].tolist()))
        table["verdict"] = [
            verdict(p, same) for p, same in zip(table["p_holm"], table["same"], strict=True)
        ]
        table = table.drop(columns="same")
    return table


def _headlines(pairs: pd.DataFrame, best: str) -> list[Headline]:
    """Return every model less the best one over all benchmarks, else on the one there is."""
    found = []
    for name, own in pairs.groupby("model", sort=False) if len(pairs) else ():
        chosen = own[own["benchmark"] == MEAN] if (own["benchmark"] == MEAN).any() else own
        for row in chosen.to_dict("records"):
            found.append(Headline(
                f"{name} − {best}", f"less the best, {row['benchmark']}", "pairs",
                row["estimate"], row["low"], row["high"], "points", row["verdict"],
                row["p_holm"], row["mde"],
            ))  # fmt: skip
    return found


def _sections(
    scores: pd.DataFrame,
    pairs: pd.DataFrame,
    best: str,
    found: Sequence[tuple[str, tuple[Row, ...]]],
) -> list[Section]:
    text = scores["score"].map("{:.1f}".format) + " (" + scores["low"].map("{:.1f}".format)
    text += " to " + scores["high"].map("{:.1f}".format) + ")"
    wide = scores.assign(text=text).pivot(index="model", columns="benchmark", values="text")
    means = scores.groupby("model")["score"].mean()
    order = means.sort_values(ascending=False, kind="stable").index
    wide = wide.loc[order, list(dict.fromkeys(scores["benchmark"]))].reset_index()
    note = (
        "Means over items with 95 % intervals for other items like these and these runs: Clopper "
        "and Pearson's of right or wrong answers, else a t. Points out of 100 where scores lie "
        "between 0 and 1."
    )
    digits = dict.fromkeys(("score", "low", "high", "estimate", "mde"), ".2f")
    blocks = (
        Sheet(Table("models", "Models and benchmarks", wide, note), open=True),
        Sheet(Table("scores", "The same, a row each", scores, formats=digits)),
    )
    sections = [Section("models", "Models and benchmarks", blocks)]
    if len(pairs):
        scope = OF[next(row.scope for _, rows in found for row in rows if row.effect)]
        told = (
            f"Every model less {best}, which has the highest mean and was picked for it, so its "
            f"lead is somewhat too large. Paired by item; intervals are {scope}. down, up: items "
            f"on which the model scores lower, higher. unpaired p: of lm-eval's own comparison, as "
            f"if the models had answered separate items. p is adjusted by Holm over the table."
        )
        p = dict.fromkeys(("p", "p_holm", "mcnemar", "unpaired_p"), P_VALUE)
        heads = {"p_holm": "p (Holm)", "mcnemar": "McNemar p", "unpaired_p": "unpaired p"}
        sheet = Sheet(Table("pairs", f"Less {best}", pairs, told, heads, digits | p), open=True)
        sections.append(Section("pairs", "Each model less the best", (Text(told), sheet)))
    return sections
