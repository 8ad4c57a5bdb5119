"""What a reader of adjusted means must know: where a model's form is too simple for its factor, and
which warnings of the page are about a factor that is shown.

A mean of a model that holds a number as a line is a point of that line. Where the score bends, it
lies away from the runs, at the ends even beyond the scores that there are.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.explorer.design import Separable
from analysis.explorer.means import PanelNames
from analysis.explorer.names import ROW, Names
from analysis.questions.plw.estimate import study_shapes
from analysis.regression.default_model import STANDS_FOR
from analysis.regression.residual_checks import bends
from analysis.regression.study import Study
from analysis.report.tables import p_text
from analysis.table.factors import is_number

Caution = dict[str, Any]  # factors: their positions; text; of a model's form also `bends`
SAME = 1e-9  # relative, of functions that are one line
OF_CELLS = ("stratum", "replicate")  # factors whose names are words of other sentences as well


def lines(panel: PanelNames, found: Separable) -> list[Caution]:
    """Return a caution for every factor that a panel's model holds as a straight line."""
    bent = {one.column: one for one in bends(panel.model)}
    told = []
    for v, name in enumerate(found.variables):
        places = _factors(panel.names, name)
        if not places or not is_number(panel.model.used[name]) or not _line(found, v):
            continue
        what = panel.names.columns[places[0]].factor.name
        one = bent.get(name)
        seen = one is not None and one.words != ""
        # A factor of a study has a name in words, a column of a table its own.
        over = _scale(panel, name, what if panel.names.key.startswith(ROW) else f"the {what}")
        text = f"The model is a straight line over {over}"
        if one is not None and seen:
            bend = f"the score bends ({p_text(one.p)})"
            text += f", and {bend}: its means may be far from those of the runs"
        told.append({"factors": places, "text": f"{text}.", "bends": seen})
    return told


def _factors(names: Names, variable: str) -> list[int]:
    """Return the positions of the factors that a column of a model stands for."""
    return [
        i
        for i, c in enumerate(names.columns)
        if c.column == variable
        or (c.column != "masking" and variable in STANDS_FOR.get(c.column, ()))  # a name, no number
    ]


def _line(found: Separable, v: int) -> bool:
    """Return whether the model has one function of a variable of three values or more."""
    values, table = len(found.values[v]), found.tables[v]
    if values < 3 or not len(table):
        return False
    rows = np.vstack([np.ones(values), table / np.abs(table).max(axis=1, keepdims=True)])
    return int(np.linalg.matrix_rank(rows, tol=SAME)) == 2


def _scale(panel: PanelNames, variable: str, what: str) -> str:
    """Return the number that the line is over, in words: "log10 of the learning rate"."""
    text = f"{variable} {panel.model.fit.formula}"
    log = re.search(rf"\b(log2|log10)(?:_|\(`?){re.escape(variable.removeprefix('log2_'))}\b", text)
    return f"{log[1]} of {what}" if log else what


def curves(study: Study, panel: PanelNames) -> list[Caution]:
    """Return a caution for every mode of a panel whose curve over the weight is no quadratic."""
    bad = [
        one.labels["mode"]
        for one in study_shapes(study)
        if not one.fits and panel.labels.items() <= one.labels.items()
    ]
    places = _factors(panel.names, "wp")
    if not bad or not places:
        return []
    text = f"The model's quadratic over the prompt loss weight does not fit ({', '.join(bad)})."
    return [{"factors": places, "text": text, "bends": True}]


def warned(warnings: Sequence[tuple[str, str]], names: Names) -> list[Caution]:
    """Return the warnings of a page that name a factor, each with the factors that it names."""
    found = []
    for _, text in warnings:
        places = [
            i
            for i, c in enumerate(names.columns)
            if c.factor.part not in OF_CELLS and any(_names(text, n) for n in _called(c.factor))
        ]
        if places:
            found.append({"factors": places, "text": text})
    return found


def _called(factor: Any) -> set[str]:
    return {factor.column, factor.name}


def _names(text: str, word: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(word)}(?!\w|\.\w)", text) is not None
