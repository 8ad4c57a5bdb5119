"""Whether a study's tests can be trusted: fit, seeds, A/A control, measured false positives.

The lines stand on the first screen, beside the second analysis of every headline.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from analysis.errors import listed
from analysis.questions.adapters.section import not_compared as arms_not_compared
from analysis.questions.controls.estimate import controls
from analysis.questions.controls.false_positives import measured_rates, too_many
from analysis.questions.plw.estimate import study_shapes
from analysis.questions.settings.section import not_compared as settings_not_compared
from analysis.regression.default_model import ONE_SEED
from analysis.regression.panels import PanelModel
from analysis.regression.residual_checks import bends
from analysis.regression.study import SCREENING_SEEDS, Study
from analysis.report import chosen_items, lost_rows, words
from analysis.report.page import Item

ALPHA = 0.05
RATE_HEADS = {
    "sham": "A/A cells", "placebo": "placebo, labels swapped",
    "shuffled": "shuffled prompts, labels swapped", "relabelled": "labels drawn at random",
}  # fmt: skip


def trusted(study: Study) -> bool:
    """Return whether no measured rate of false positives lies above the tests' level."""
    return not len(too_many(measured_rates(study)))


def trust(study: Study) -> list[Item]:
    """Return a line each on fit, seeds, curves, A/A control and measured false positives."""
    return [
        _fit(study), _seeds(study), *_curves(study), *_bends(study), *_sham(study),
        *false_positive_line(measured_rates(study)),
    ]  # fmt: skip


def warnings(study: Study) -> tuple[tuple[str, str], ...]:
    """Return what must be read before anything else."""
    found = []
    if not study.converged:
        text = "Nothing is concluded from the model's intervals; see the diagnostics."
        found.append(("Not converged.", text))
    found += chosen_items.warning(study.rows)
    found += lost_rows.warning(study.raw, study.folder)
    found += [("Not in the model.", text) for text in study.left_out]
    found += [("To be read with care.", text) for text in study.in_doubt]
    lost = (*arms_not_compared(study), *settings_not_compared(study))
    found += [("Not compared.", text) for text in lost]
    for row in too_many(measured_rates(study)).itertuples():
        head = RATE_HEADS[str(row.control)]
        text = (
            f"{head[0].upper()}{head[1:]}: {_rate_text(row)} of comparisons that hold no "
            f"difference were called different at the 5 % level. The p-values of this page are "
            f"smaller, and its intervals shorter, than they should be."
        )
        found.append(("Too many false positives.", text))
    for one in study.lost:
        found.append(("No model.", f"{study.panel(one.labels)}: {one.reason}"))
    if not study.replicated:
        found.append(("One seed a cell.", ONE_SEED))
    elif study.screening:
        count = {1: "One seed", 2: "Two seeds"}[study.seeds]
        text = (
            f"{count} per cell can screen, not conclude: use what follows to choose what to run "
            f"with more than {SCREENING_SEEDS} seeds."
        )
        found.append(("Screening.", text))
    return tuple(found)


def _fit(study: Study) -> Item:
    good, models = study.converged, study.models
    count = sum(model.fit.n for model in models)
    panels = words.count(len(study.panels), "panel")
    text = f"The models' fit: {study.status}; {panels}, {count:,} means of runs"
    if not study.panels:
        text = f"The model's fit: {study.status}, {count:,} scores"
    if any(model.fit.singular for model in models) and good:
        text += "; singular: a variance is estimated as zero or a correlation as +1 or -1"
    return Item(f"{text}.", "fit", "clear" if good else "warn", ("coefficients",))


def _seeds(study: Study) -> Item:
    fewest, _, most = study.seeds_per_cell
    text = f"{words.count(most, 'seed')} per cell."
    text = text if fewest == most else f"{fewest} to {text}"
    every = study.rows["seed"].nunique()
    if every > most:
        text += f" The study has {every} in all: its cells did not run under the same seeds."
    return Item(text, "seeds", "warn" if study.screening else "")


def _curves(study: Study) -> Iterator[Item]:
    """Say on how many curves the quadratic, which PLW 1 − PLW 0 is read from, does not fit."""
    tested = study_shapes(study)
    bad = [study.panel(one.labels) for one in tested if not one.fits]
    if bad:
        text = (
            f"The quadratic over the weight does not fit {len(bad)} of {len(tested)} curves (5 % "
            f"level, not adjusted): {listed(bad, limit=3)}. PLW 1 − PLW 0 is that of the fitted "
            f"curve there; the means by level stand beside it."
        )
        yield Item(text, "curve", "warn", ("curve_shape",))


def _bends(study: Study) -> Iterator[Item]:
    """Say of every number in which panels the model's straight line over it does not fit."""
    found: dict[str, list[str]] = {}
    for model in study.models:
        panel = study.panel(model.labels) if isinstance(model, PanelModel) else "all scores"
        for one in bends(model):
            found.setdefault(one.column, []).append(panel if one.words else "")
    for column, panels in found.items():
        if bad := [panel for panel in panels if panel]:
            every = words.count(len(panels), "model")
            text = (
                f"The score bends over {column} in {len(bad)} of {every}"
                f" ({listed(bad, limit=3)}): a straight line misstates its effect there; see the "
                f"diagnostics."
            )
            yield Item(text, "curvature", "warn", ("residual_checks",))


def _sham(study: Study) -> Iterator[Item]:
    for found in controls(study.frame):
        if found.name != "sham" or found.tasks != "all" or found.effect is None:
            continue
        seen = found.effect.p < ALPHA
        text = f"A/A control, a label that changes nothing: {words.estimate_text(found.effect)}"
        verdict = "a difference where there is none" if seen else "no difference, as it should be"
        yield Item(f"{text}; {verdict}.", "A/A", "warn" if seen else "clear", ("controls",))


def false_positive_line(rates: pd.DataFrame) -> Iterator[Item]:
    """Say how often the study's tests call a difference what is none, against the 5 % wanted."""
    if not len(rates):
        return
    said = "; ".join(
        f"{RATE_HEADS[str(r.control)]} {_rate_text(r)} of {r.tests} tests"
        for r in rates.itertuples()
    )
    beyond = len(too_many(rates)) > 0
    text = f"False positives at the 5 % level, measured here: {said}."
    if beyond:
        text += " Where the interval lies above 5 %, take p-values for smaller than they should be."
    tag = ("too many", "warn") if beyond else ("as wanted", "clear")
    yield Item(text, *tag, ("false_positives",))


def _rate_text(row: Any) -> str:
    low, high = 100 * float(row.low), 100 * float(row.high)
    return f"{100 * float(row.rate):.0f} % ({low:.0f} to {high:.0f} %)"
