"""What a page needs to compute marginal means of a panel's model, with their intervals.

Coefficients b, their covariance V, the model matrix as products (`explorer.design`), the lookups
from factors to its columns (`explorer.means`), what makes a mean estimable (X_left_out = X_kept A),
and the degrees of freedom: both rules give a contrast l

    df = 2 / (s' W s),  s_k = l' J_k l / l' U l,

with Satterthwaite's U = V, J = dV / dphi and W = Cov(phi) (`engine.satterthwaite`), and Kenward and
Roger's unadjusted U, J_k = U P_k U and W, to which their m comes down for one contrast
(`inference.kenward_roger`).

Letters in names: B fixed effects, K variance parameters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.engine.fits import ESTIMABLE
from analysis.engine.linalg import Array
from analysis.errors import AnalysisError
from analysis.explorer.cautions import lines
from analysis.explorer.design import Separable, separable
from analysis.explorer.means import PanelNames
from analysis.explorer.packing import Packer
from analysis.inference.estimates import covariance
from analysis.inference.kenward_roger import kenward_roger
from analysis.mixed import MixedFit


@dataclass(frozen=True)
class Freedom:
    """What degrees of freedom are computed from; without K parameters they are infinite."""

    unadjusted_BB: Array
    jacobian_KBB: Array
    phi_cov_KK: Array


def freedom(fit: MixedFit, rule: str) -> Freedom:
    """Return what the degrees of freedom of every contrast of a fit are computed from.

    Raises:
        AnalysisError: Kenward and Roger's rule cannot be had.
    """
    size = len(fit.fixef)
    if rule == "normal":
        return Freedom(fit.cov.to_numpy(), np.zeros((0, size, size)), np.zeros((0, 0)))
    if rule == "kenward-roger":
        found = kenward_roger(fit)
        turn_BB = found.products.turned(np.eye(size))  # l as the rule has it is turn_BB @ l
        half_BB = found.phi_BB @ turn_BB
        seen_KBB = half_BB.T @ found.p_KBB @ half_BB
        return Freedom(turn_BB.T @ half_BB, seen_KBB, found.w_KK)
    bent = fit.curvature
    return Freedom(bent.cov_BB, bent.jacobian_KBB, bent.phi_cov_KK)


def model_data(panel: PanelNames, pack: Packer) -> dict[str, Any]:
    """Return a panel's model for a page; without the fit where it is no product of columns."""
    model = panel.model
    first = np.unique(panel.names.run[panel.member])
    key = panel.names.key
    score = model.used.set_index(model.used[key].astype(str))[model.score]
    keys = panel.names.runs[key].astype(str).to_numpy()[first]
    about = {
        "labels": dict(panel.labels), "status": model.status, "formula": model.fit.formula,
        "rule": model.df, "replicated": panel.replicated, "names": pack.codes(panel.member),
        "runs": pack.codes(first), "scores": pack.array(score[keys].to_numpy(), "f64"),
    }  # fmt: skip
    try:
        apart = {
            one.variable: one.held for one in panel.lookups if not one.by and one.held is not None
        }
        found = separable(model.fit, model.used.assign(**apart), panel.held)
    except AnalysisError:
        return about | {"fit": None, "cautions": []}
    return about | {"fit": _fit_data(panel, found, pack), "cautions": lines(panel, found)}


def _fit_data(panel: PanelNames, found: Separable, pack: Packer) -> dict[str, Any]:
    fit, rule = panel.model.fit, panel.model.df
    df = freedom(fit, rule)
    kept = fit.problem.fixed.kept
    gone = np.setdiff1d(np.arange(len(fit.design.names)), kept)
    variables: list[dict[str, Any]] = []
    for v, (name, values) in enumerate(zip(found.variables, found.values, strict=True)):
        look = next(one for one in panel.lookups if one.variable == name)
        place = {value: i for i, value in enumerate(values)}
        codes = [place[value] for value in look.values]
        variables.append({"name": name, "by": list(look.by), "codes": pack.codes(codes)})
        variables[-1] |= {"size": len(values), "table": pack.array(found.tables[v], "f64")}
        if look.held is not None:
            variables[-1]["held"] = place[look.held]
    repeats = fit.repeats if len(gone) else np.zeros((len(kept), 0))
    return {
        "variables": variables,
        "scale": pack.array(found.scale_C, "f64"),
        "parts": [list(map(list, parts)) for parts in found.parts],
        "kept": list(map(int, kept)), "gone": list(map(int, gone)),
        "repeats": pack.array(repeats, "f64"), "estimable": ESTIMABLE,
        "coefficients": pack.array(fit.fixef.to_numpy(), "f64"),
        "covariance": pack.array(_lower(covariance(fit, rule)), "f64"),
        "unadjusted": pack.array(_lower(df.unadjusted_BB), "f64"),
        "jacobian": pack.array([_lower(j_BB) for j_BB in df.jacobian_KBB], "f64"),
        "phi": pack.array(df.phi_cov_KK, "f64"),
    }  # fmt: skip


def _lower(square_BB: Array) -> npt.NDArray[np.float64]:
    """Return the lower triangle of a symmetric matrix, row by row."""
    return np.asarray(((square_BB + square_BB.T) / 2)[np.tril_indices(len(square_BB))])
