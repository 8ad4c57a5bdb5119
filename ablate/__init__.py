"""Factorial ablation studies of LLM instruction fine-tuning.

`ablate.load(folder)` opens the results of a study for notebooks and scripts; `ablate.decide` says
whether a change is kept, for programs that try one after another.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.errors import UserError, nearest
from ablate.version import __version__

if TYPE_CHECKING:
    from analysis.facade import LoadedTable

__all__ = ["__version__", "decide", "load"]


def load(source: str | Path, **options: Any) -> "LoadedTable":
    """Return the study in a results folder; see `analysis.facade.load`.

    Args:
        source: a folder with results.parquet, or a results table as .parquet, .csv or .tsv.
        options: score, formula, family, weights, df, margin and frozen, as of `ablate report`.

    Raises:
        analysis.errors.AnalysisError: no table, or an option that is not as it must be.
    """
    from analysis import facade  # here, for every module of ablate imports this file first

    return facade.load(source, **options)


def decide(
    base: str,
    candidate: str,
    *common: str,
    margin: float,
    score: str = "benchmarks",
    **settings: Any,
) -> dict[str, Any]:
    """Return whether `candidate` is kept in place of `base`, as `ablate decide --json` prints it.

    Args:
        base: overrides of the base in one text, such as "adapter=lora rank=8"; "" for none.
        candidate: overrides of the candidate.
        common: overrides of both, such as "out=results/loop".
        margin: the smallest effect worth having, in units of the score.
        score: "benchmarks", the name of one, "test" or "validation" (held-out loss).
        settings: miss, max_seeds, looks, alpha, decisions, campaign_seeds, fresh, anew,
            retry_failed, as of `ablate decide`.

    Raises:
        ablate.errors.UserError: the request is wrong.
        ablate.commands.decide_loop.Stopped: training was ended; the same call goes on.
    """
    from ablate.commands import decide as verb

    for name in settings:
        if name not in (known := verb.SETTINGS[1:]):
            raise UserError(f"{name}: no such setting; {', '.join(known)}.{nearest(name, known)}")
    return verb.decide(base, candidate, common, verb.settings_of(margin, **settings), score=score)
