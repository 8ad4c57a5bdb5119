"""The claims of the PLW paper, each held against the data: estimate, interval, verdict.

Huerta-Enochian and Ko, arXiv 2401.13586; what is claimed is listed with its sources in
`analysis/published`. A verdict is given per panel (data set, task group):

    supported            the interval excludes the other answer
    contradicted         the interval excludes the claim
    not distinguishable  the data do not decide; the MDE (minimum detectable effect) is given
    not testable here    what the claim is about was not run or not measured

Intervals are 95 % each and not adjusted for the number of lines.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.engine.linalg import Array
from analysis.inference.estimates import Estimate, contrast, equivalence
from analysis.inference.mean_response import Response
from analysis.inference.optimum import INTERIOR, NO_INTERIOR, NOT_IDENTIFIED
from analysis.papers import verdicts
from analysis.papers.verdicts import UNDECIDED, UNTESTABLE
from analysis.papers.verdicts import verdict as _verdict
from analysis.questions.plw.across import Across, across_model
from analysis.questions.plw.estimate import dose
from analysis.regression.model import MARGIN
from analysis.regression.panels import DoseCurve
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.headline import CONTRADICTED, SUPPORTED
from analysis.table.frame import SCORED
from analysis.table.level_means import Levels, level_means
from analysis.table.run_panels import key_of

SMALL, NEAR = 0.01, 0.1  # "small PLW" and the end of the near range, as the paper has them
# A measure's first metric, where it has several under other names than its own.
MEASURED_BY = {"weight_distance": "relative", "prompt_bleu": "bleu", "generation_length": "tokens"}
BLEU_MARGIN = 5.0  # BLEU points that count as flat: "near 80"

CLAIMS: Mapping[str, str] = {
    "quadratic": "Short completions: the score is a negative quadratic in w_p, best inside (0, 1)",
    "long_rises": "Short completions: long generation rises with PLW up to 1",
    "no_relation": "Long completions: PLW makes no difference",
    "zero_worst": "Short completions: PLW 0 is worse than the other levels",
    "largest_long": "Short completions: the effect is largest on long generation",
    "rsd_small": "Training loss varies more at small PLW than at 0",
    "rsd_one": "Training loss varies least at PLW 1",
    "distance": "Weights stay closest to the base at small non-zero PLW",
    "bleu_flat": "BLEU on training prompts is flat from PLW 0 to 0.1",
    "bleu_falls": "BLEU on training prompts falls above PLW 0.1",
    "longer": "A larger PLW lengthens generations",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One claim in one panel."""

    claim: str
    where: str
    measure: str  # what the estimate is
    effect: Estimate | None
    verdict: str

    def row(self) -> dict[str, object]:
        """Return it as one row of a table."""
        head = {"claim": CLAIMS[self.claim], "where": self.where, "measure": self.measure}
        return verdicts.row(head, self.effect, self.verdict)


@dataclass(frozen=True, slots=True)
class _Curve:
    panel: DoseCurve
    where: str
    response: Response
    optimum: str  # the verdict of `curve.best.best_row`

    @property
    def group(self) -> str:
        return self.panel.labels["task_group"]


def plw_claims(study: Study) -> pd.DataFrame:
    """Return claim, where, measure, estimate, low, high, mde, verdict: a row per panel."""
    lines = [*_curve_claims(study), *_measure_claims(study.frame)]
    for claim in CLAIMS:
        if not any(line.claim == claim for line in lines):
            lines.append(Line(claim, "–", "", None, UNTESTABLE))
    order = list(CLAIMS)
    lines.sort(key=lambda line: order.index(line.claim))
    return pd.DataFrame([line.row() for line in lines])


def _curve_claims(study: Study) -> Iterator[Line]:
    rows = study.frame[~study.frame["is_base"] & (study.frame["control"] == "")]
    kinds = rows.drop_duplicates("dataset").set_index("dataset")["dataset_type"].astype(str)
    named = [(str(kinds.loc[c.panel.labels["dataset"]]), c) for c in _curves(study)]
    short = [c for kind, c in named if kind == "short"]
    yield from (_quadratic(c) for c in short if not c.group.startswith("long"))
    yield from (_rises(c) for c in short if c.group.startswith("long"))
    yield from (_no_relation(c) for kind, c in named if kind == "long")
    yield from _zero_worst(rows, [str(d) for d, kind in kinds.items() if kind == "short"])
    yield from _largest_long(study, short)


def _curves(study: Study) -> Iterator[_Curve]:
    """Yield the curves with replicates of the masking mode that has most levels: the paper has one
    mode.
    """
    found = [c for c in study.curves if c.levels > 1 and c.replicated]
    verdicts = {key_of(row): str(row["optimum"]) for row in dose(study).to_dict("records")}
    mode = max(found, key=lambda c: c.levels).labels["mode"] if found else ""
    for one in (c for c in found if c.labels["mode"] == mode):
        verdict = verdicts.get(key_of(one.labels), NOT_IDENTIFIED)
        yield _Curve(one, study.panel(one.labels), one.response(), verdict)


def _quadratic(curve: _Curve) -> Line:
    bend = contrast(curve.response.fit, curve.response.l_3B[2], df=curve.response.df)
    verdict = {INTERIOR: SUPPORTED, NO_INTERIOR: CONTRADICTED}.get(curve.optimum, UNDECIDED)
    return Line("quadratic", curve.where, "coefficient of w_p²", bend, verdict)


def _rises(curve: _Curve) -> Line:
    gain = curve.response.gain(1.0)
    verdict = CONTRADICTED if curve.optimum == INTERIOR else _verdict(gain, 1)
    return Line("long_rises", curve.where, "points, PLW 1 − PLW 0", gain, verdict)


def _no_relation(curve: _Curve) -> Line:
    """No relation is a claim of equivalence: supported within the margin, else undecided."""
    gains = [curve.response.gain(x) for x in (0.5, 1.0)]
    flat = all(g.se > 0 and equivalence(g, MARGIN).p < 0.05 for g in gains)
    moved = curve.response.quadratic.p < 0.05
    verdict = SUPPORTED if flat and not moved else CONTRADICTED if moved else UNDECIDED
    measure = f"points, PLW 1 − PLW 0; margin ±{MARGIN:g}"
    return Line("no_relation", curve.where, measure, gains[1], verdict)


def _zero_worst(rows: pd.DataFrame, datasets: Iterable[str]) -> Iterator[Line]:
    bench = rows[rows["task_type"].isin(SCORED)]
    for dataset in datasets:
        own = bench[bench["dataset"].astype(str) == str(dataset)]
        for task, scores in own.groupby("task", observed=True):
            means = level_means(scores, ["wp"])
            zero = means.table["wp"] == 0
            gap = means.compare(~zero, zero) if means.replicated else None
            measure = "points, mean of the other levels − PLW 0"
            yield Line("zero_worst", f"{dataset}, {task}", measure, gap, _verdict(gap, 1))


def _largest_long(study: Study, curves: list[_Curve]) -> Iterator[Line]:
    """Compare how far the fitted curves reach, taking the weights of their extremes as given."""
    model = across_model(study)
    for curve in (c for c in curves if c.group.startswith("long") and model is not None):
        for other in (c for c in curves if not c.group.startswith("long")):
            if all(curve.panel.labels[n] == other.panel.labels[n] for n in ("dataset", "model")):
                assert model is not None
                l_B = _reach(curve, model) - _reach(other, model)
                gap = contrast(model.fit, l_B, df=study.df)
                where = f"{curve.where} − {words.group_text(other.group)}"
                measure = "points from the lowest to the highest fitted score, difference"
                yield Line("largest_long", where, measure, gap, _verdict(gap, 1))


def _reach(curve: _Curve, model: Across) -> Array:
    """Return the contrast that is the curve's highest value on [0, 1] less its lowest."""
    quadratic = curve.response.quadratic
    vertex = -quadratic.b1 / (2 * quadratic.b2) if quadratic.b2 else 0.0
    points = [0.0, 1.0, *([vertex] if 0 < vertex < 1 else [])]
    heights = {x: quadratic.b1 * x + quadratic.b2 * x * x for x in points}
    top, bottom = max(heights, key=heights.__getitem__), min(heights, key=heights.__getitem__)
    l1_B, l2_B = model.points(curve.panel.labels)
    return (top - bottom) * l1_B + (top**2 - bottom**2) * l2_B


def _measure_claims(frame: pd.DataFrame) -> Iterator[Line]:
    for dataset, means in _replicated(frame, "train_loss_rsd"):
        plw = means.table["plw"]
        few, one = (plw > 0) & (plw <= SMALL), plw == 1
        measure = "difference of the relative standard deviation"
        yield _line("rsd_small", dataset, measure, (means, few, plw == 0), 1)
        yield _line("rsd_one", dataset, measure, (means, one, ~one), -1)
    for dataset, means in _replicated(frame, "weight_distance"):
        near = (means.table["plw"] > 0) & (means.table["plw"] <= NEAR)
        zero, far = means.table["plw"] == 0, means.table["plw"] > NEAR
        yield _line("distance", f"{dataset}, against PLW 0", "distance", (means, near, zero), -1)
        yield _line("distance", f"{dataset}, against PLW > 0.1", "distance", (means, near, far), -1)
    for dataset, means in _replicated(frame, "prompt_bleu"):
        yield from _bleu(dataset, means)
    for dataset, means in _replicated(frame, "generation_length"):
        plw = means.table["plw"]
        yield _line("longer", dataset, "tokens, PLW 1 − PLW 0", (means, plw == 1, plw == 0), 1)


def _replicated(frame: pd.DataFrame, name: str) -> list[tuple[str, Levels]]:
    """Return `measure_means` of the data sets with replicates, without which nothing is judged."""
    return [(dataset, means) for dataset, means in measure_means(frame, name) if means.replicated]


def measure_means(frame: pd.DataFrame, name: str) -> list[tuple[str, Levels]]:
    """Return the adjusted means by PLW of a measure, or of a column with one number per run.

    The masking mode with most weights is taken alone, together with the runs at weight 0.
    """
    rows = frame[~frame["is_base"] & (frame["control"] == "")]
    if name in rows:
        rows = rows.drop_duplicates("run").assign(value=lambda d: d[name].astype(float))
    else:
        rows = rows[rows["task"].astype(str) == name]
        metrics = list(dict.fromkeys(rows["metric"].astype(str)))
        wanted = MEASURED_BY.get(name, name)
        rows = rows[rows["metric"] == (wanted if wanted in metrics else name)]
    rows = rows.dropna(subset=["value"]) if "wp" in rows else rows.iloc[:0]
    above = rows[rows["wp"] > 0]
    if not len(above):
        return []
    mode = above.groupby("masking", observed=True)["wp"].nunique().idxmax()
    rows = rows[(rows["masking"] == mode) | (rows["wp"] == 0)]
    rows = rows.assign(plw=rows["plw"].where(rows["wp"] > 0, 0.0))
    return [
        (str(dataset), level_means(own, ["plw", "wp"], value="value"))
        for dataset, own in rows.groupby("dataset", observed=True, sort=False)
    ]


_Sides = tuple[Levels, "pd.Series[bool]", "pd.Series[bool]"]


def _line(claim: str, where: str, measure: str, sides: _Sides, sign: int) -> Line:
    effect = sides[0].compare(sides[1], sides[2])
    return Line(claim, where, measure, effect, _verdict(effect, sign))


def _bleu(dataset: str, means: Levels) -> Iterator[Line]:
    plw = means.table["plw"]
    flat = means.compare((plw > 0) & (plw <= NEAR), plw == 0)
    verdict = verdicts.same(flat, BLEU_MARGIN)
    measure = f"BLEU, PLW up to 0.1 − PLW 0; margin ±{BLEU_MARGIN:g}"
    yield Line("bleu_flat", dataset, measure, flat, verdict)
    sides = (means, plw > NEAR, plw <= NEAR)
    yield _line("bleu_falls", dataset, "BLEU, PLW above 0.1 − up to 0.1", sides, -1)
