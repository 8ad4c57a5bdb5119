"""Whether a study's tests can be trusted: fit, seeds, A/A control, measured false positives.

The lines stand on the first screen, beside the second analysis of every headline.
"""

from collections.abc import Iterator

from analysis.questions.controls.estimate import controls
from analysis.questions.controls.false_positives import measured_rates
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Item

ALPHA = 0.05


def trust(study: Study) -> list[Item]:
    """Return a line each on fit, seeds, A/A control and measured false positives."""
    return [_fit(study), _seeds(study), *_sham(study), *_rates(study)]


def _fit(study: Study) -> Item:
    good = study.fit.converged
    text = f"The model's fit: {study.status}, {study.fit.n:,} scores"
    if study.fit.singular and good:
        text += "; a variance is estimated as zero"
    return Item(f"{text}.", "fit", "clear" if good else "warn", ("coefficients",))


def _seeds(study: Study) -> Item:
    text = f"{words.count(study.seeds, 'seed')} per cell."
    return Item(text, "seeds", "warn" if study.screening else "")


def _sham(study: Study) -> Iterator[Item]:
    for found in controls(study.frame):
        if found.name != "sham" or found.tasks != "all" or found.effect is None:
            continue
        seen = found.effect.p < ALPHA
        text = f"A/A control, a label that changes nothing: {words.estimate_text(found.effect)}"
        verdict = "a difference where there is none" if seen else "no difference, as it should be"
        yield Item(f"{text}; {verdict}.", "A/A", "warn" if seen else "clear", ("controls",))


def _rates(study: Study) -> Iterator[Item]:
    """Yield the measured false-positive rate: of the A/A cells, else of labels drawn at random."""
    rates = measured_rates(study)
    for name in ("sham", "relabelled"):
        own = rates[rates["control"] == name] if len(rates) else rates
        if not len(own):
            continue
        row = own.iloc[0]
        low, high = float(row["low"]), float(row["high"])
        of = "A/A cells" if name == "sham" else "labels drawn at random"
        text = (
            f"False-positive rate of tests at the 5 % level, measured on {of}: "
            f"{float(row['rate']):.0%} of {row['tests']} tests ({100 * low:.0f} to "
            f"{100 * high:.0f} %)."
        )
        many = low > ALPHA
        text += " p-values are smaller than they should be." if many else ""
        yield Item(text, "false positives", "warn" if many else "clear", ("false_positives",))
        return
