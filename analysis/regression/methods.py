"""The methods of a report: a paragraph to paste, and the table of the numbers in it.

`fact_rows` is the table that the paragraph is written from: every number of the paragraph on the
model is in it.
"""

import platform
from dataclasses import dataclass
from importlib import metadata

import pandas as pd

from analysis.regression import equation
from analysis.regression.model import RULES, Regression
from analysis.regression.study import Study
from analysis.report import words
from analysis.report.page import Block, Copy, Section, Sheet, Text
from analysis.report.tables import Table, escape_tex

SOFTWARE = ("ablate", "numpy", "scipy", "pandas", "formulaic")
REFERENCES = {
    "kenward-roger": "Kenward and Roger 1997, Biometrics 53, 983-997",
    "satterthwaite": "Kuznetsova, Brockhoff and Christensen 2017, J. Stat. Softw. 82(13)",
    "ladder": "Bates, Kliegl, Vasishth and Baayen 2015, arXiv 1506.04967",
    "beta": "Ferrari and Cribari-Neto 2004, J. Appl. Stat. 31, 799-815",
    "beta_squeezed": "Smithson and Verkuilen 2006, Psychol. Methods 11, 54-71",
    "beta_inflated": "Ospina and Ferrari 2010, Stat. Papers 51, 111-126",
    "boundary": "Self and Liang 1987, JASA 82, 605-610",
    "tost": "Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680",
    "wp": "Huerta-Enochian and Ko 2024, arXiv 2401.13586",
}
LAWS = {
    "gaussian": "Gaussian, identity link",
    "binomial": "binomial, logit link",
    "beta": "beta, logit link",
    "beta_squeezed": "beta, logit link, of scores squeezed away from 0 and 1",
    "beta_inflated": "beta, logit link, exact 0 and 1 modelled apart",
}


@dataclass(frozen=True, slots=True)
class About:
    """What the methods say beside what the fit says of itself."""

    design: tuple[str, ...] = ()  # sentences before those on the model
    practice: tuple[str, ...] = ()  # sentences after them
    facts: tuple[tuple[str, str, str], ...] = ()  # what, value, reference


NOTHING = About()
MARGIN_FACT = "margin of equivalence"


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {"Python": platform.python_version()}
    for name in SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def fact_rows(reg: Regression, about: About = NOTHING) -> pd.DataFrame:
    """Return every number and choice that the methods paragraph states: what, value, reference."""
    fit = reg.fit
    rows: list[tuple[str, str, str]] = [
        *about.facts,
        ("family", LAWS[reg.family], REFERENCES.get(reg.family, "")),
        ("formula", fit.formula, ""),
        ("criterion", "REML" if fit.method == "REML" else _criterion(reg), ""),
        ("rows in the table", f"{fit.n + reg.dropped:,}", ""),
        ("rows used", f"{fit.n:,}", ""),
        ("rows left out", f"{reg.dropped:,}", "no score, or a missing value in a column used"),
        ("fixed effects", f"{len(fit.fixef):,}", ""),
        ("degrees of freedom", RULES[reg.df], REFERENCES.get(reg.df, "") or reg.df_reason),
        ("level of intervals", "95 %", ""),
        ("power of the minimum detectable effect", "80 %", ""),
    ]
    rows += [(f"levels of {g}", f"{len(e.modes):,}", "random") for g, e in fit.random.items()]
    if infinite := reg.frame.attrs.get("infinite"):
        rows.append(("rows with an infinite score", f"{infinite:,}", "among those left out"))
    if reg.proposal.weights:
        kind = "trials" if reg.family == "binomial" else "weights"
        rows.append((kind, reg.proposal.weights, "a column of the table"))
    if reg.margin and not any(what == MARGIN_FACT for what, *_ in about.facts):
        rows.append((MARGIN_FACT, f"± {reg.margin:g}", REFERENCES["tost"]))
    if reg.steps:
        rows.append(("formula asked for", reg.asked.formula, REFERENCES["ladder"]))
    if fit.random:
        rows.append(("tests of random terms", "likelihood ratio by ML", REFERENCES["boundary"]))
    if "wp" in fit.design.parsed.columns and "plw" in reg.frame and not reg.own_wp:
        rows.append(("w_p", "PLW^0.30103", REFERENCES["wp"]))
    rows += [(f"version of {name}", version, "") for name, version in versions().items()]
    return pd.DataFrame(rows, columns=["what", "value", "reference"])


def _criterion(reg: Regression) -> str:
    if not reg.general:
        return "maximum likelihood"
    return "maximum likelihood" + (" (Laplace approximation)" if reg.fit.random else "")


def sentences(reg: Regression, *, absence: bool = True) -> list[str]:
    """Return the methods paragraph, sentence by sentence.

    Args:
        reg: the model.
        absence: whether to say here how the absence of an effect is claimed.
    """
    fit = reg.fit
    kind = "mixed model" if fit.random else "regression"
    by = "REML" if fit.method == "REML" else _criterion(reg)
    said = [
        f"We modelled {reg.response.strip('`')} with a {LAWS[reg.family].partition(',')[0]} {kind} "
        f"({LAWS[reg.family].partition(', ')[2]}), fitted by {by} to {fit.n:,} rows{_left(reg)}.",
        _fixed(reg),
        *([_random(reg)] if fit.random else []),
        *_weights(reg),
        *_simplified(reg),
        _inference(reg),
    ]
    if reg.margin and absence:
        said.append(
            f"Absence of an effect was claimed only by two one-sided tests within a margin of "
            f"± {reg.margin:g}."
        )
    found = versions()
    rest = ", ".join(f"{n} {v}" for n, v in found.items() if n not in ("ablate", "Python"))
    said.append(f"Computed with ablate {found['ablate']} (Python {found['Python']}, {rest}).")
    return said


def _left(reg: Regression) -> str:
    infinite = int(reg.frame.attrs.get("infinite", 0))
    counts = {"with a missing value": reg.dropped - infinite, "with an infinite score": infinite}
    said = [f"{words.count(n, 'row')} {what}" for what, n in counts.items() if n]
    if not said:
        return ""
    return f"; {' and '.join(said)} were left out"


def _fixed(reg: Regression) -> str:
    names = ", ".join(_plain(str(t)) for t in reg.fit.design.spec.terms if str(t) != "1")
    return f"Fixed effects: {names or 'the intercept alone'} ({_coefficients(reg)})."


def _coefficients(reg: Regression) -> str:
    return words.count(len(reg.fit.fixef), "coefficient") + " with the intercept"


def _plain(term: str) -> str:
    return words.term_text(term.replace("`", ""))


def _random(reg: Regression) -> str:
    parts = []
    for group, effect in reg.fit.random.items():
        names = [str(n) for n in effect.cov.index]
        what = "intercepts" if names == ["Intercept"] else (
            "intercepts and slopes" if "Intercept" in names else "slopes"
        )  # fmt: skip
        parts.append(
            f"random {what} for {group.replace(':', ' × ')} ({len(effect.modes):,} levels)"
        )
    return f"Dependence between rows was modelled by {' and '.join(parts)}."


def _weights(reg: Regression) -> list[str]:
    if not reg.proposal.weights:
        return []
    if reg.family == "binomial":
        return [f"Each score is a share of {reg.proposal.weights} trials."]
    return [f"Rows were weighted by {reg.proposal.weights}."]


def _simplified(reg: Regression) -> list[str]:
    if not reg.steps:
        return []
    return [
        f"The random part asked for, {reg.asked.formula}, was more than the data support and was "
        f"simplified by what is estimated as zero, never by the effects of interest."
    ]


def _inference(reg: Regression) -> str:
    if reg.df == "normal" and reg.general:
        return (
            f"Intervals (95 %) and tests are Wald's, by the normal approximation; {reg.adjustment}."
        )
    rule = RULES[reg.df] if reg.fit.random or reg.df == "normal" else "residual degrees of freedom"
    return f"Intervals (95 %) and tests use {rule}; {reg.adjustment}."


def practice(study: Study) -> tuple[str, ...]:
    """Return what every report of a study does beside fitting the model, in sentences."""
    settled = (
        "What was settled before the data stands under “Planned before the data”; the rest is "
        "exploratory."
        if study.plan is not None
        else "This analysis was not frozen before the data were seen: it is exploratory."
    )
    several = f" and by Bonferroni over {study.questions} questions" * (study.questions > 1)
    over = f"by Holm over the effects of a question{several}"
    tests = "adjusted by Holm over the arms" if study.rated else "not adjusted for their number"
    found = [
        "Scores of one run are not independent: a run counts once in a panel, as the mean of its "
        "tasks; items are held fixed, so intervals are about other runs scored on the same items.",
        f"Intervals are of single effects; the p-values that verdicts rest on are adjusted {over}.",
        f"Absence of an effect beyond ± {study.margin:g} points was claimed only by two one-sided "
        f"tests at the 5 % level, {tests}.",
        "Beside every difference stands the minimum detectable effect (MDE): the true effect that "
        "one unadjusted test at the 5 % level finds with 80 % power.",
        "The interval of an optimum is Fieller's; there is an interior optimum only if the curve "
        "rises at PLW 0 and falls at PLW 1, each at the 5 % level (Lind and Mehlum 2010).",
    ]
    if study.weights:
        found.append("Means of runs in leaderboards are not weighted.")
    return (*found, settled)


def study_facts(study: Study) -> tuple[tuple[str, str, str], ...]:
    """Return the numbers that `practice` states: what, value, reference."""
    return (
        (MARGIN_FACT, f"± {study.margin:g}", REFERENCES["tost"]),
        ("questions with headlines", f"{study.questions}", "p is adjusted for their number"),
        ("level of tests", "5 %", ""),
    )


def section(reg: Regression, about: About = NOTHING) -> Section:
    """Return the methods: a paragraph to paste, the equation, and the table of its numbers."""
    note = "Everything that the paragraph states; references for what was done."
    heads = {"what": "", "reference": "reference or reason"}
    facts = Table(
        "methods", "Choices and numbers of the analysis", fact_rows(reg, about), note, heads
    )
    blocks: list[Block] = [
        Text("Ready to paste; the LaTeX file has the equation as well."),
        Copy("methods.tex", _paragraph(reg, about), tex(reg, about)),
        Sheet(facts),
    ]
    return Section("methods", "Methods", tuple(blocks), "A paragraph to paste, with its numbers.")


def _paragraph(reg: Regression, about: About) -> str:
    said = sentences(reg, absence=not about.practice)
    return " ".join((*about.design, *said, *about.practice))


def tex(reg: Regression, about: About = NOTHING) -> str:
    """Return the paragraph and the equation in LaTeX, with the packages they need as a comment."""
    found = equation.equation(reg)
    lines = [
        "% needs \\usepackage{amsmath}; tables/*.tex need \\usepackage{booktabs}",
        escape_tex(_paragraph(reg, about)),
        "",
        "The model is, for row $i$,",
        equation.latex(found).rstrip(),
    ]
    if found.legend:
        lines += ["where " + equation.legend_tex(found) + "."]
    return "\n".join(lines) + "\n"
