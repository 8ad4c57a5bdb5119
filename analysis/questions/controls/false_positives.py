"""The false-positive rate of this study's own tests, measured where the truth is that nothing is.

Three ways to make comparisons of no difference out of the runs of a grid:

    sham      A/A cells against their partners, task by task: a label that changes the draws alone.
              An A/A run has an order of its own, so the seed cannot be a block here: the test is
              score ~ cell, with the noise pooled over all cells of the data set and base model.
    placebo, shuffled
              these may have a true effect, so it is taken out: the differences of the pairs less
              their mean (times sqrt(S / (S - 1)), which gives the spread back), the two labels then
              swapped seed by seed in every possible way. The test is that of the study's cells,
              score ~ cell + seed with pooled noise.
    relabelled
              every panel's own model with a label added to it that is drawn at random, cell by
              cell. What the model misses of cells shows here, because a label drawn by cell can
              pick it up.

A rate is given with its Clopper-Pearson interval (1934, Biometrika 26(4)), as if comparisons were
independent; those of one pair on several tasks are not quite. The tests of one labelling are not
at all: their interval is that of a clustered share (Korn and Graubard 1998, Surv. Methodol. 24(2)),
with as many independent tests as have the share's variance between labellings.

Letters in names: S seeds, F ways to swap, L labellings.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from analysis.engine.linalg import Array, Mask
from analysis.errors import AnalysisError
from analysis.inference.estimates import contrast
from analysis.inference.shares import clopper_pearson, clustered_share
from analysis.mixed import fit_mixed, with_columns
from analysis.questions.controls.estimate import RULES, pair_columns
from analysis.regression.model import Regression
from analysis.regression.study import Study
from analysis.table.adjusted_means import seed_adjusted
from analysis.table.cell_effect import cells_left
from analysis.table.cells import without_rank
from analysis.table.factors import joined, stratum_names, study_cells
from analysis.table.frame import SCORED
from analysis.table.run_panels import PANEL, grouped, task_panels

ALPHA = 0.05
RELABELLINGS = 100
MOST_COEFFICIENTS = 150  # of a model that is fitted for every labelling
MOST_SWAPS = 10  # seeds up to which every way to swap is taken
WAYS = {
    "sham": "as labelled",
    "placebo": "labels swapped",
    "shuffled": "labels swapped",
    "relabelled": "label drawn at random",
}


def measured_rates(study: Study) -> pd.DataFrame:
    """Return `false_positive_rates` of a study."""
    return study.once(
        "false positives", lambda: false_positive_rates(study.frame, _study_labellings(study))
    )


def panel_rates(study: Study) -> pd.DataFrame:
    """Return the rate of random labels by panel: dataset, model, task_group, tests, rate, low,
    high; empty where no label could be drawn.
    """
    drawn = _study_labellings(study)
    rows = []
    for labels, own in grouped(drawn, PANEL) if len(drawn) else ():
        hits = float((own["p"] < ALPHA).sum())
        low, high = clopper_pearson(hits, len(own))
        rows.append(labels | {"tests": len(own), "rate": hits / len(own), "low": low, "high": high})
    return pd.DataFrame(rows)


def _study_labellings(study: Study) -> pd.DataFrame:
    return study.once("labellings", lambda: relabelled(study, labellings=RELABELLINGS))


def false_positive_rates(frame: pd.DataFrame, drawn: pd.DataFrame) -> pd.DataFrame:
    """Return one row per kind of comparison: control, way, tests, hits, rate, low, high.

    `hits` of swapped labels is the expected number: every comparison counts by the share of its
    swaps below 5 %. Empty where the table has no comparison of this kind.

    Args:
        frame: a prepared results table.
        drawn: the tests of labels drawn at random, of `relabelled`.
    """
    rows = frame[~frame["is_base"] & frame["task_type"].isin(SCORED)]
    shares = {control: list(_shares(rows, control)) for control in RULES}
    found = [
        _rate_row(control, own, clopper_pearson(float(np.sum(own)), len(own)))
        for control, own in shares.items() if own
    ]  # fmt: skip
    if len(drawn):
        hit = drawn["p"] < ALPHA
        # Labels of one set of runs are no more independent than what their cells leave over.
        most = float(drawn.drop_duplicates(list(PANEL))["left"].sum())
        ends = clustered_share(hit, drawn["labelling"], most=most)
        found.append(_rate_row("relabelled", list(hit), ends))
    return pd.DataFrame(found)


def _rate_row(
    control: str, shares: Sequence[float], ends: tuple[float, float]
) -> dict[str, object]:
    hits, tests = float(np.sum(shares)), len(shares)
    return {
        "control": control, "way": WAYS[control], "tests": tests, "hits": hits,
        "rate": hits / tests, "low": ends[0], "high": ends[1],
    }  # fmt: skip


def too_many(rates: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `false_positive_rates` whose interval lies above the level."""
    return rates[rates["low"] > ALPHA] if len(rates) else rates


def _shares(rows: pd.DataFrame, control: str) -> Iterator[float]:
    """Yield, by stratum, task and pair of cells, how often the test calls it a difference."""
    for _, own in rows.groupby([stratum_names(rows), rows["task"]], observed=True):
        if not (own["control"] == control).any():
            continue
        plain = own[own["control"] == ""].assign(cell="")
        plain["cell"] = _condition(plain)
        treated = own[own["control"] == control]
        treated = RULES[control].partner(treated)
        treated = treated.assign(cell=_condition(treated))
        if control == "sham":
            yield from _as_labelled(plain, treated)
        else:
            yield from _swapped(plain, treated)


def _condition(runs: pd.DataFrame) -> "pd.Series[str]":
    """Return the name of every run's cell; full fine-tuning has no rank."""
    names = [n for n in pair_columns(runs) if n not in ("seed", "dataset", "model")]
    return joined(without_rank(runs), names)


def _as_labelled(plain: pd.DataFrame, sham: pd.DataFrame) -> Iterator[float]:
    """Yield 1 for every A/A cell that differs from its partner by score ~ cell, else 0."""
    groups = [own["score"].to_numpy(float) for _, own in plain.groupby("cell")]
    others = [own["score"].to_numpy(float) for _, own in sham.groupby("cell")]
    df = sum(len(g) - 1 for g in (*groups, *others))
    square = sum(float(((g - g.mean()) ** 2).sum()) for g in (*groups, *others))
    if df < 1 or square == 0:
        return
    partner = {str(c): own["score"].to_numpy(float) for c, own in plain.groupby("cell")}
    for cell, own in sham.groupby("cell"):
        if str(cell) in partner:
            a, b = own["score"].to_numpy(float), partner[str(cell)]
            t = (a.mean() - b.mean()) / np.sqrt(square / df * (1 / len(a) + 1 / len(b)))
            yield float(2 * stats.t.sf(abs(t), df) < ALPHA)


def _swapped(plain: pd.DataFrame, treated: pd.DataFrame) -> Iterator[float]:
    """Yield the share of all swaps of centred pairs that score ~ cell + seed calls a difference."""
    try:
        fit = seed_adjusted(plain, sorted(plain["cell"].unique()))
    except AnalysisError:
        return
    sigma = float(np.sqrt(fit.residual_YY[0, 0]))
    scores = plain.assign(seed=plain["seed"].astype(str)).set_index(["cell", "seed"])["score"]
    for cell, own in treated.groupby("cell"):
        keys = [(str(cell), str(seed)) for seed in own["seed"]]
        there = np.array([key in scores.index for key in keys])
        if there.sum() < 2:
            continue
        other = scores.loc[[k for k, t in zip(keys, there, strict=True) if t]].to_numpy(float)
        gap_S = own["score"].to_numpy(float)[there] - other
        yield _share_of_swaps(gap_S, sigma, fit.df)


def _share_of_swaps(gap_S: Array, sigma: float, df: float) -> float:
    seeds = len(gap_S)
    centred = (gap_S - gap_S.mean()) * np.sqrt(seeds / (seeds - 1))
    if seeds <= MOST_SWAPS:
        sign_FS = np.array(list(product((-1.0, 1.0), repeat=seeds)))
    else:
        sign_FS = np.random.default_rng(0).choice((-1.0, 1.0), (2**MOST_SWAPS, seeds))
    t_F = sign_FS @ centred / seeds / (sigma * np.sqrt(2 / seeds))
    return float((2 * stats.t.sf(np.abs(t_F), df) < ALPHA).mean())


def relabelled(study: Study, *, labellings: int, seed: int = 0) -> pd.DataFrame:
    """Return the tests of labels drawn at random by cell, within the study's own models.

    Half of the cells of every data set and base model get the label, the same in all its panels.

    Args:
        study: whose panels are tested, each in its own model, or in the one model of all scores.
        labellings: how often labels are drawn.
        seed: of the draws.

    Returns:
        labelling, dataset, model, task_group, left (degrees of freedom between cells) and p.
        Panels without replicates, whose terms tell every cell apart (the label then has nothing to
        add), or with a model that is too large to be fitted many times are not among them.
    """
    rng = np.random.default_rng(seed)
    rows = study.rows.assign(cell=study_cells(study.rows))
    cells = [sorted(own.unique()) for _, own in rows["cell"].groupby(stratum_names(rows))]
    drawn = [_labels(cells, rng) for _ in range(labellings)]
    found: list[dict[str, object]] = []
    for model in study.panels:
        if model.fit.random.get("cell") is not None:
            cell = stratum_names(model.frame) + " " + model.frame["cell"]
            found += _label_tests(model, cell, drawn, [(model.labels, np.ones(len(cell), bool))])
    if study.joint is not None:
        parts = [(one.labels, one.runs["cell"].duplicated().any()) for one in task_panels(rows)]
        masks = [(labels, _inside(rows, labels)) for labels, replicated in parts if replicated]
        found += _label_tests(study.joint, rows["cell"], drawn, masks)
    return pd.DataFrame(found, columns=["labelling", *PANEL, "left", "p"])


def _inside(rows: pd.DataFrame, labels: Mapping[str, str]) -> Mask:
    """Return which rows are of a panel."""
    return np.all([rows[n].astype(str) == labels[n] for n in PANEL], axis=0)


def _label_tests(
    model: Regression,
    cell: "pd.Series[str]",
    drawn: Sequence[Mapping[str, float]],
    parts: Sequence[tuple[dict[str, str], Mask]],
) -> Iterator[dict[str, object]]:
    """Yield the test of every labelling and panel, a panel's label being one more column."""
    names = [f"label{i}" for i in range(len(parts))]
    if len(model.fit.fixef) + len(names) > MOST_COEFFICIENTS:
        return
    own = [cell.map(labels).to_numpy(dtype=float) for labels in drawn]
    columns = [
        {
            name: np.where(mask_N, label_N, 0.0)
            for name, (_, mask_N) in zip(names, parts, strict=True)
        }
        for label_N in own
    ]
    try:
        first = fit_mixed(
            model.frame.assign(**columns[0]), " + ".join([model.fit.formula, *names]),
            weights=model.proposal.weights,
        )  # fmt: skip
    except AnalysisError:
        return
    used = model.frame.index.get_indexer(first.design.rows)
    left = {
        name: cells_left(model.fit.formula, model.frame[mask_N].assign(cell=cell[mask_N]))
        for name, (_, mask_N) in zip(names, parts, strict=True)
    }
    for labelling, column in enumerate(columns):
        fit = with_columns(first, {name: x_N[used] for name, x_N in column.items()})
        for name, (labels, _) in zip(names, parts, strict=True):
            if name in fit.fixef.index:
                test = contrast(fit, (fit.fixef.index == name).astype(float), df=model.df)
                yield labels | {"labelling": labelling, "left": left[name], "p": test.p}


def _labels(strata: Sequence[Sequence[str]], rng: np.random.Generator) -> dict[str, float]:
    """Return 1/2 for the half of every stratum's cells that drew the label, -1/2 for the others."""
    return {
        str(name): 0.5 if i % 2 else -0.5
        for cells in strata for i, name in enumerate(rng.permutation(cells))
    }  # fmt: skip
