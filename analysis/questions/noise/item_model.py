"""Right or wrong, item by item: a binomial mixed model of cells with runs and items crossed.

    logit P(right) = cell + seed + (1 | run) + (1 | item) + (1 | cell:item)

for one task in one stratum, by Laplace's approximation (`analysis.engine.glmm`). The last term,
there where cells have several runs, is what a cell changes on single items: without it the runs of
a cell would agree on items better than the model allows, their own variance would be estimated as
zero and intervals of differences of cells would be too short. Cells differ in log odds for the same
item: unlike points, log odds mean the same near 50 % and near 95 %. A large table is thinned to
every k-th item, because estimates of how much runs and items vary do not need them all; how many
were used is stated.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.mixed import MixedFit, fit_mixed
from analysis.questions.noise.estimate import cells_of
from analysis.table.items import RIGHT, Items

MOST_ROWS = 40_000
LOGISTIC = np.pi**2 / 3  # variance of the logistic distribution


@dataclass(frozen=True, slots=True)
class ItemModel:
    """A binomial fit of one task's items."""

    fit: MixedFit
    items: int  # that were used
    of: int  # items there are

    def sd(self, group: str) -> float:
        """Return the standard deviation over "run", "item" or "cell:item", in log odds.

        NaN where the model has no such term.
        """
        effect = self.fit.random.get(group)
        return float("nan") if effect is None else float(effect.sd.iloc[0])

    @property
    def share_of_items(self) -> float:
        """The share of the latent variance that lies between items (the items' ICC)."""
        every = sum(self.sd(group) ** 2 for group in self.fit.random)
        return self.sd("item") ** 2 / (every + LOGISTIC)


def item_model(items: Items, *, most_rows: int = MOST_ROWS) -> ItemModel:
    """Return the binomial model of one binary task's items.

    Args:
        items: of one task and one stratum.
        most_rows: run x item rows to fit; beyond it every k-th item is used.

    Raises:
        AnalysisError: several tasks, scores that are not right or wrong, fewer than two runs, or
            what `fit_mixed` refuses.
    """
    if len(items.tasks) != 1 or not items.items["binary"].all():
        raise AnalysisError(f"items of {', '.join(items.tasks)}: need one task of right or wrong")
    if len(items.runs) < 2:
        raise AnalysisError("items: one run has nothing to be compared with")
    rows = long_rows(items, most_rows=most_rows)
    terms = [n for n in ("cell", "seed") if n in rows and rows[n].nunique() > 1]
    formula = f"right ~ {' + '.join(terms) or '1'} + (1 | run) + (1 | item)"
    if 1 < rows["cell"].nunique() < len(items.runs):
        formula += " + (1 | cell:item)"
    fit = fit_mixed(rows, formula, family="binomial")
    return ItemModel(fit, int(rows["item"].nunique()), len(items.items))


def long_rows(items: Items, *, most_rows: int = MOST_ROWS) -> pd.DataFrame:
    """Return right (0 or 1), cell, seed, run and item, thinned to `most_rows` rows or so."""
    step = max(1, -(-items.scores_RI.size // most_rows))
    score_RI = items.scores_RI[:, ::step]
    row, column = np.nonzero(~np.isnan(score_RI))
    rows = pd.DataFrame({"right": (score_RI[row, column] / RIGHT).astype(np.float64)})
    names = {"cell": cells_of(items), "run": items.runs["run"].astype(str)}
    if "seed" in items.runs:
        names["seed"] = items.runs["seed"].astype(str)
    for name, labels in names.items():
        codes, levels = pd.factorize(labels)
        rows[name] = pd.Categorical.from_codes(pd.Index(codes[row]), pd.Index(levels))
    docs = items.items["doc_id"].to_numpy()[::step].astype(str)
    rows["item"] = pd.Categorical.from_codes(pd.Index(column), pd.Index(docs))
    return rows
