"""The best prompt loss weight of a curve: one estimator, and where it may be printed.

The estimate is the maximum on [0, 1] of a fitted quadratic in w_p = PLW^0.30103, with Fieller's
interval and the verdict of `analysis.inference.optimum`. A quadratic has a maximum even where the
truth is a plateau, so an optimum inside is claimed only where the tests of the curve's shape
(`curve.shape`) bear it. Every section, the claims of the paper and the first screen take their
optimum from `best_row`.
"""

from analysis.curve.shape import Shape
from analysis.inference.optimum import INTERIOR, NOT_IDENTIFIED, Optimum
from analysis.table.frame import plw_of

IN_DOUBT = "optimum in doubt"
NAN = float("nan")
NO_CURVE = "too few weights were run to determine a curve"
UNTESTED = "the shape of the curve could not be tested (too few weights, no replicates)"
# Headings and formats of the columns of `best_row` in a table of the report.
BEST_HEADS = {
    "optimum": "verdict", "best_plw": "best PLW", "plw_low": "95 % low", "plw_high": "95 % high",
    "gain_se": "s.e.",
}  # fmt: skip
BEST_FORMATS = dict.fromkeys(("best_plw", "plw_low", "plw_high"), ".2g")
BEST_FORMATS |= dict.fromkeys(("gain", "gain_se"), ".2f")


def objection(shape: Shape | None) -> str:
    """Return why a panel's curve does not bear an optimum inside; "" where it does.

    Args:
        shape: the tests of the panel's curve; None where they could not be made.
    """
    return UNTESTED if shape is None else shape.objection


def best_row(best: Optimum | None, doubt: str) -> dict[str, float | str]:
    """Return an optimum as the columns of a table; numbers are NaN where none may be printed.

    Args:
        best: of the fitted curve over w_p; None where there is no curve.
        doubt: why the shape of the curve does not bear a maximum inside, see `objection`.

    Returns:
        optimum (the verdict), best_wp, best_plw, plw_low, plw_high (Fieller's 95 % interval, cut to
        [0, 1]; only where the maximum is inside), gain, gain_se (points above PLW 0) and because.
    """
    none = dict.fromkeys(("best_wp", "best_plw", "plw_low", "plw_high", "gain", "gain_se"), NAN)
    if best is None:
        return {"optimum": NOT_IDENTIFIED, **none, "because": NO_CURVE}
    inside = best.verdict == INTERIOR
    if inside and doubt:
        return {"optimum": IN_DOUBT, **none, "because": doubt}
    if not (inside or best.at_end):
        return {"optimum": best.verdict, **none, "because": best.words}
    low, high = (plw_of(min(max(x, 0.0), 1.0)) if inside else NAN for x in best.fieller)
    return {
        "optimum": best.verdict, "best_wp": best.at, "best_plw": plw_of(best.at), "plw_low": low,
        "plw_high": high, "gain": best.gain, "gain_se": best.gain_se, "because": best.words,
    }  # fmt: skip
