"""Likelihood-ratio p-values where a variance is zero under the smaller model.

A variance of zero lies on the edge of what is possible, so the ratio is not chi-square: half of
the time the larger model gains nothing by it. For one new random column, whose variance comes
with c covariances, the ratio is a 50:50 mixture of chi-squares with d - 1 and d degrees of
freedom, d counting all new parameters (Self and Liang 1987, JASA 82(398), case 5; Stram and Lee
1994, Biometrics 50(4)); covariances or fixed effects that are new besides only add to d. For one
variance alone that is half of the plain p-value. With two new columns or more the weights depend
on the design: the plain chi-square is then given, which is too large, and simulation
(`analysis.inference.bootstrap.bootstrap_ratio`) is the way to an exact one.
"""

from scipy import stats

from analysis.mixed import MixedFit


def mixture_p(statistic: float, df: int) -> float:
    """Return P(T >= statistic) for the 50:50 mixture of chi-squares with df - 1 and df."""
    if statistic <= 0:
        return 1.0
    lower = float(stats.chi2.sf(statistic, df - 1)) if df > 1 else 0.0
    return (lower + float(stats.chi2.sf(statistic, df))) / 2


def new_columns(small: MixedFit, large: MixedFit) -> int:
    """Return how many random columns `large` has that `small` has not."""
    old = {(f.group, name) for f in small.problem.factors for name in f.names}
    new = {(f.group, name) for f in large.problem.factors for name in f.names}
    return len(new - old)


def boundary_p(small: MixedFit, large: MixedFit, statistic: float) -> tuple[float, str]:
    """Return the p-value of a likelihood ratio, and a note where it is not a plain chi-square.

    Args:
        small: fitted by ML.
        large: fitted by ML, with more parameters.
        statistic: twice the difference of their log-likelihoods.
    """
    df, new = large.parameters - small.parameters, new_columns(small, large)
    plain = float(stats.chi2.sf(statistic, df))
    if new == 0:
        return plain, ""
    if new == 1:
        return mixture_p(statistic, df), (
            f"a variance is zero under the small model: p is of the 50:50 mixture of chi-squares "
            f"with {df - 1} and {df} degrees of freedom"
        )
    return plain, (
        f"{new} variances are zero under the small model: p is of the plain chi-square and too "
        f"large; simulation (bootstrap_ratio) gives an exact one"
    )
