"""The methods of a stranger's regression: a paragraph to paste, and where its numbers stand.

`facts` is the table that the paragraph is written from: every number in it is in that table.
"""

import platform
from importlib import metadata

import pandas as pd

from analysis.regression import equation
from analysis.regression.model import RULES, Regression
from analysis.report import words
from analysis.report.page import Block, Copy, Formula, Item, Listing, Section, Sheet, Text
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


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {"Python": platform.python_version()}
    for name in SOFTWARE:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def fact_rows(reg: Regression) -> pd.DataFrame:
    """Return every number and choice that the methods paragraph tells: what, value, reference."""
    fit, dropped = reg.fit, dropped_rows(reg)
    rows: list[tuple[str, str, str]] = [
        ("family", LAWS[reg.family], REFERENCES.get(reg.family, "")),
        ("formula", fit.formula, ""),
        ("criterion", "REML" if fit.method == "REML" else _criterion(reg), ""),
        ("rows in the table", f"{len(reg.frame) + reg.frame.attrs['dropped']:,}", ""),
        ("rows used", f"{fit.n:,}", ""),
        ("rows left out", f"{dropped:,}", "no score, or a missing value in a column used"),
        ("fixed effects", f"{len(fit.fixef):,}", ""),
        ("degrees of freedom", RULES[reg.df], REFERENCES.get(reg.df, "") or reg.df_reason),
        ("level of intervals", "95 %", ""),
        ("power of the minimum detectable effect", "80 %", ""),
    ]
    rows += [(f"levels of {g}", f"{len(e.modes):,}", "random") for g, e in fit.random.items()]
    if reg.proposal.weights:
        kind = "trials" if reg.family == "binomial" else "weights"
        rows.append((kind, reg.proposal.weights, "a column of the table"))
    if reg.margin:
        rows.append(("margin of equivalence", f"± {reg.margin:g}", REFERENCES["tost"]))
    if reg.steps:
        rows.append(("formula asked for", reg.asked.formula, REFERENCES["ladder"]))
    if fit.random:
        rows.append(("tests of random terms", "likelihood ratio by ML", REFERENCES["boundary"]))
    if "wp" in fit.design.parsed.columns and "plw" in reg.frame:
        rows.append(("w_p", "PLW^0.30103", REFERENCES["wp"]))
    rows += [(f"version of {name}", version, "") for name, version in versions().items()]
    return pd.DataFrame(rows, columns=["what", "value", "reference"])


def dropped_rows(reg: Regression) -> int:
    """Return the rows of the table that the fit did not use."""
    return int(reg.frame.attrs["dropped"]) + len(reg.frame) - reg.fit.n


def _criterion(reg: Regression) -> str:
    if not reg.general:
        return "maximum likelihood"
    return "maximum likelihood" + (" (Laplace approximation)" if reg.fit.random else "")


def sentences(reg: Regression) -> list[str]:
    """Return the methods paragraph, sentence by sentence."""
    fit = reg.fit
    kind = "mixed model" if fit.random else "regression"
    by = "REML" if fit.method == "REML" else _criterion(reg)
    told = [
        f"We modelled {reg.response.strip('`')} with a {LAWS[reg.family].partition(',')[0]} {kind} "
        f"({LAWS[reg.family].partition(', ')[2]}), fitted by {by} to {fit.n:,} rows{_left(reg)}.",
        _fixed(reg),
        *([_random(reg)] if fit.random else []),
        *_weights(reg),
        *_simplified(reg),
        _inference(reg),
    ]
    if reg.margin:
        told.append(
            f"Absence of an effect was claimed only by two one-sided tests within a margin of "
            f"± {reg.margin:g}."
        )
    found = versions()
    rest = ", ".join(f"{n} {v}" for n, v in found.items() if n not in ("ablate", "Python"))
    told.append(f"Computed with ablate {found['ablate']} (Python {found['Python']}, {rest}).")
    return told


def _left(reg: Regression) -> str:
    dropped = dropped_rows(reg)
    if not dropped:
        return ""
    what = "row" if dropped == 1 else "rows"
    return f"; {dropped:,} {what} with a missing value were left out"


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
    comparisons = (
        "pairwise comparisons of marginal means are adjusted by Tukey's method, joint tests by "
        "Holm's"
    )
    if reg.df == "normal" and reg.general:
        return f"Intervals (95 %) and tests are Wald's, by the normal approximation; {comparisons}."
    rule = RULES[reg.df] if reg.fit.random else "residual degrees of freedom"
    return f"Intervals (95 %) and tests use {rule}; {comparisons}."


def section(reg: Regression) -> Section:
    """Return the methods: a paragraph to paste, the equation, and the table of its numbers."""
    note = "Everything that the paragraph states; references for what was done."
    heads = {"what": "", "reference": "reference or reason"}
    facts = Table("methods", "Choices and numbers of the analysis", fact_rows(reg), note, heads)
    paragraph = " ".join(sentences(reg))
    blocks: list[Block] = [
        Text("Ready to paste; the LaTeX file has the equation as well."),
        Copy("methods.tex", paragraph, tex(reg)),
        Sheet(facts),
    ]
    return Section("methods", "Methods", tuple(blocks))


def tex(reg: Regression) -> str:
    """Return the paragraph and the equation in LaTeX, with the packages they need as a comment."""
    found = equation.equation(reg)
    lines = [
        "% needs \\usepackage{amsmath}; tables/*.tex need \\usepackage{booktabs}",
        escape_tex(" ".join(sentences(reg))),
        "",
        "The model is, for row $i$,",
        equation.latex(found).rstrip(),
    ]
    if found.legend:
        lines += ["where " + equation.legend_tex(found) + "."]
    return "\n".join(lines) + "\n"


def model_section(reg: Regression) -> Section:
    """Return the model: formula, equation, what its symbols mean, and the way down the ladder."""
    found = equation.equation(reg)
    blocks: list[Block] = [
        Text(f"{reg.fit.formula}, {LAWS[reg.family]}, fitted by {reg.fit.method}."),
        Formula(equation.mathml(found) + equation.legend_html(found)),
    ]
    if reg.steps:
        blocks += [Text("The random part was simplified:")]
        blocks += [Listing(tuple(Item(text=step) for step in reg.steps)), Sheet(_ladder(reg), True)]
    return Section("model", "The model", tuple(blocks))


def _ladder(reg: Regression) -> Table:
    """Return both fits, as asked for and as used."""
    rows = [
        {"fit": name, "formula": fit.formula, "parameters": fit.parameters,
         "loglik": fit.loglik, "AIC": fit.aic, "converged": fit.converged,
         "singular": fit.singular}
        for name, fit in (("as asked for", reg.asked), ("as used", reg.fit))
    ]  # fmt: skip
    note = "After Bates et al. 2015: from the structure asked for downwards."
    formats = {"loglik": ".2f", "AIC": ".1f"}
    heads = {"loglik": "log-likelihood"}
    return Table("ladder", "Both fits", pd.DataFrame(rows), note, heads, formats)
