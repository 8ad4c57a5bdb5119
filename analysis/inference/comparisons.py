"""Comparisons of marginal means: all pairs, or all others against a reference.

Letters in names: K means, C contrasts, B fixed effects.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.engine.linalg import Array, Index, Mask
from analysis.engine.summary import as_text
from analysis.errors import AnalysisError, listed, nearest
from analysis.inference.estimates import Estimate, contrast, covariance
from analysis.inference.means import Means, named
from analysis.inference.multiplicity import (
    ADJUSTMENTS,
    adjusted,
    max_t_critical,
    max_t_p,
    tukey_critical,
    tukey_p,
)
from analysis.inference.scale import IDENTITY, checked

Family = tuple[pd.DataFrame, list[Estimate], Array, Array, Array]
Make = Callable[[list[str]], dict[str, Array]]  # from the names of a family's means


@dataclass(frozen=True, slots=True, repr=False)
class Comparisons:
    """Contrasts of means, with p-values and intervals for the whole family.

    Every combination of `within` is a family of its own.
    """

    means: Means
    labels: pd.DataFrame  # (C, ...): "contrast" and the levels of `within`
    estimates: tuple[Estimate, ...]
    w_CK: Array  # the weight of every mean in every contrast
    p: Array  # adjusted, (C,)
    half_width: Array  # simultaneous where the adjustment has intervals, else of one contrast

    def __repr__(self) -> str:
        return as_text(self.table())

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return str(self.table().to_html(index=False, border=0))

    @property
    def levels(self) -> list[tuple[str, str]]:
        """The names of the two means whose difference each pairwise contrast is."""
        names = named(self.means.labels[list(self.means.of)])
        return [(names[w_K.argmax()], names[w_K.argmin()]) for w_K in self.w_CK]

    @property
    def on_response(self) -> tuple[Estimate, ...]:
        """The same contrasts of the means on the score's own scale, as emmeans' `regrid`.

        The contrast of means is taken after the link is undone; its standard error is by the delta
        method, its degrees of freedom are those of the contrast on the linear scale. Not adjusted.
        """
        mu_K, slope_KB = self.means.on_response()
        cov_BB = covariance(self.means.fit, self.means.df)
        lost_C = (self.w_CK[:, np.isnan(mu_K)] != 0).any(axis=1)  # the means themselves are needed
        value_C = np.where(lost_C, np.nan, self.w_CK @ np.nan_to_num(mu_K))
        g_CB = self.w_CK @ np.nan_to_num(slope_KB)
        se_C = np.sqrt(np.maximum(np.einsum("ca,ab,cb->c", g_CB, cov_BB, g_CB), 0.0))
        se_C = np.where(lost_C, np.nan, se_C)
        return tuple(
            Estimate(e.name, float(value), float(se), e.df, e.level)
            for e, value, se in zip(self.estimates, value_C, se_C, strict=True)
        )

    def table(self, *, type: str = "link") -> pd.DataFrame:
        """Return one row per contrast: estimate, se, df, t, p, p_adjusted, low, high.

        Args:
            type: "link", or "response" for ratios (of odds, on the logit scale) in place of
                differences; t and p are of the difference still.

        Raises:
            AnalysisError: ratios where a difference is the logarithm of none.
        """
        names = ("estimate", "se", "df", "t", "p")
        found = pd.DataFrame([{n: getattr(e, n) for n in names} for e in self.estimates])
        found["p_adjusted"] = self.p
        found["low"] = found["estimate"] - self.half_width
        found["high"] = found["estimate"] + self.half_width
        if checked(type) and self.means.scale is not IDENTITY:
            found = self._ratios(found)
        return pd.concat([self.labels.reset_index(drop=True), found], axis=1)

    def _ratios(self, found: pd.DataFrame) -> pd.DataFrame:
        scale = self.means.scale
        name = scale.ratio.replace(" ", "_")
        if not name:
            raise AnalysisError(
                f"type=response: a difference of {scale.name} is no ratio; compare on the link"
            )
        names = ("estimate", "low", "high")
        ends = {column: scale.ratios(found[column].to_numpy()) for column in names}
        with np.errstate(invalid="ignore"):  # an infinite ratio has no standard error
            se = np.log(scale.base) * ends["estimate"] * found["se"]
        return found.assign(**ends, se=se).rename(columns={"estimate": name})


def pairwise(found: Means, *, adjust: str = "tukey") -> Comparisons:
    """Return all differences of two means, first less second, within every family.

    Args:
        found: means (or slopes) of `analysis.inference.means`.
        adjust: of `analysis.inference.multiplicity.ADJUSTMENTS`; "tukey" is exact where all
            differences have one variance (Tukey and Kramer otherwise), "mvt" for any covariance.

    Raises:
        AnalysisError: an unknown adjustment.
    """
    return _compared(found, _pairs, adjust)


def against(found: Means, reference: object, *, adjust: str = "mvt") -> Comparisons:
    """Return the differences of all means from the one at `reference` (Dunnett's comparisons).

    Args:
        found: means of one column.
        reference: that column's level.
        adjust: of `analysis.inference.multiplicity.ADJUSTMENTS`; "tukey" is for all pairs only.
    """
    levels = [str(v) for v in found.labels[found.of[0]]] if len(found.of) == 1 else []
    if str(reference) not in levels:
        known = list(dict.fromkeys(levels))
        raise AnalysisError(
            f"reference={reference}: not a level compared here ({listed(known)})."
            f"{nearest(reference, known)}"
        )

    def differences(names: list[str]) -> dict[str, Array]:
        if str(reference) not in names:
            return {}
        base = names.index(str(reference))
        eye = np.eye(len(names))
        others = [i for i in range(len(names)) if i != base]
        return {difference(names[i], names[base]): eye[i] - eye[base] for i in others}

    return _compared(found, differences, adjust)


def _pairs(names: list[str]) -> dict[str, Array]:
    eye, pairs = np.eye(len(names)), combinations(range(len(names)), 2)
    return {difference(names[i], names[j]): eye[i] - eye[j] for i, j in pairs}


def difference(first: str, second: str, *, minus: str = " - ") -> str:
    """Return what a level less another is called; a level with a minus in it stands in brackets."""
    return minus.join(f"({n})" if re.search(" [-−] ", n) else n for n in (first, second))


def _compared(found: Means, make: Make, adjust: str) -> Comparisons:
    if adjust not in ADJUSTMENTS:
        raise AnalysisError(
            f"adjust={adjust}: not one of {listed(ADJUSTMENTS)}.{nearest(adjust, ADJUSTMENTS)}"
        )
    if adjust == "tukey" and make is not _pairs:
        raise AnalysisError("adjust=tukey: for all pairs only; use mvt or holm here")
    parts = [_family(found, rows, make, adjust) for rows in _families(found)]
    labels, estimates, w_CK, p, width = zip(*parts, strict=True)
    return Comparisons(
        means=found,
        labels=pd.concat(labels, ignore_index=True),
        estimates=tuple(e for part in estimates for e in part),
        w_CK=np.vstack(w_CK),
        p=np.concatenate(p),
        half_width=np.concatenate(width),
    )


def _families(found: Means) -> list[Index]:
    if not found.within:
        return [np.arange(len(found.labels))]
    groups = found.labels.groupby(list(found.within), sort=False, observed=True).ngroup()
    return [np.flatnonzero(groups == g) for g in range(int(groups.max()) + 1)]


def _family(found: Means, rows: Index, make: Make, adjust: str) -> Family:
    """Return labels, estimates, weights, adjusted p and half widths of one family."""
    own = found.labels.iloc[rows]
    contrasts = make(named(own[list(found.of)]))
    own_CK = np.array(list(contrasts.values())).reshape(len(contrasts), len(rows))
    w_CK = np.zeros((len(contrasts), len(found.labels)))
    w_CK[:, rows] = own_CK
    # A difference may be estimable where the means are not: what they share cancels.
    l_CB = found.fit.kept(own_CK @ found.l_KC[rows])
    known_C = np.asarray(np.isfinite(l_CB).all(axis=1))
    estimates = [
        contrast(found.fit, l_B, name=name, level=found.level, df=found.df)
        for name, l_B in zip(contrasts, l_CB, strict=True)
    ]
    labels = pd.DataFrame({"contrast": list(contrasts)})
    for i, name in enumerate(found.within):
        labels.insert(i, name, [own[name].iloc[0]] * len(labels))
    p, width = _adjustment(found, estimates, (l_CB, known_C), adjust, len(rows))
    return labels, estimates, w_CK, p, width


def _adjustment(
    found: Means,
    estimates: list[Estimate],
    contrasts: tuple[Array, Mask],
    adjust: str,
    count: int,
) -> tuple[Array, Array]:
    """Return the family's p-values and half widths; what is not estimable is no part of it."""
    l_CB, there = contrasts
    p, width = np.full((2, len(estimates)), np.nan)
    known = [e for e, good in zip(estimates, there, strict=True) if good and e.se > 0]
    there = there & np.array([e.se > 0 for e in estimates], dtype=bool)
    if not known:
        return p, width
    t, df, se = (np.array([getattr(e, n) for e in known]) for n in ("t", "df", "se"))
    if adjust == "tukey" and count > 2:
        p[there], width[there] = tukey_p(t, df, count), se * tukey_critical(found.level, df, count)
    elif adjust == "mvt" and len(known) > 1:
        cov_CC = l_CB[there] @ covariance(found.fit, found.df) @ l_CB[there].T
        p[there] = max_t_p(t, df, cov_CC)
        width[there] = se * max_t_critical(found.level, df, cov_CC)
    else:
        plain = "none" if adjust in ("tukey", "mvt") else adjust
        p[there] = adjusted([e.p for e in known], plain)
        level = found.level
        if plain == "bonferroni":
            level = 1 - (1 - level) / len(known)
        width[there] = [Estimate(e.name, e.estimate, e.se, e.df, level).half_width for e in known]
    return p, width
