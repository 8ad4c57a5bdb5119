"""The methods paragraph: what a paper's readers need, from the fit and the table themselves."""

from analysis.mixed import MixedFit
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.overview import counts
from analysis.report.page import Block, Item, Listing, Section, Text


def section(study: Study) -> Section:
    """Return the methods of a study of our own."""
    told = (_design(study), _model(study.fit), _inference(study.plan is not None))
    blocks: list[Block] = [Text(text) for text in told]
    blocks.append(Text("How the model was chosen:"))
    blocks.append(Listing(tuple(Item(text=reason) for reason in study.reasons)))
    return Section("methods", "Methods", tuple(blocks))


def _design(study: Study) -> str:
    n = counts(study.raw)
    reach = ", ".join(
        words.count(n[f"{noun}s"], noun) for noun in ("base model", "data set", "seed", "task")
    )
    return (
        f"{words.count(n['runs'], 'run')} over {reach}. Runs of one seed share the order "
        "of their examples within a data set. Cells that are the same run under several names were "
        "trained and counted once. Scores are in points (0 to 100), higher is better, one primary "
        "metric per task. PLW is the weight that the loss in fact gives to prompt tokens, 0 for "
        "masking=instruction, and w_p = PLW^0.30103 (Huerta-Enochian and Ko, arXiv 2401.13586)."
    )


def _model(fit: MixedFit) -> str:
    kind = "mixed model" if fit.random else "linear model"
    return (
        f"The {fit.family} {kind} {fit.formula} was fitted to {fit.n} scores by {fit.method}. "
        "Scores of one run are not independent, which is what the random effect of the run is for; "
        "items are held fixed, so intervals speak of other runs scored on the same items."
    )


def _inference(frozen: bool) -> str:
    settled = (
        "What was settled before the data stands under “Planned before the data”; the rest is "
        "exploratory."
        if frozen
        else "This analysis was not frozen before the data were seen: it is exploratory."
    )
    return (
        "Intervals are 95 %, with Satterthwaite's degrees of freedom. Families of comparisons are "
        "adjusted by Holm's method where a table has a column for it. An absence of effect is "
        "claimed only by two one-sided tests against the stated margin; beside every difference "
        "stands the smallest true effect that the design finds with 80 % power. The interval of an "
        "optimum is Fieller's; there is an interior optimum only if the curve rises at PLW 0 and "
        f"falls at PLW 1, each beyond doubt (Lind and Mehlum 2010). {settled}"
    )
