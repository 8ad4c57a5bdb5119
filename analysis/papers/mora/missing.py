"""What a results table lacks of the paper's tables and figures, in plain words."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from analysis.errors import listed
from analysis.papers.mora.measures import COUNTS, PERPLEXITY, Measured
from analysis.papers.mora.runs import (
    CONTINUED,
    INSTRUCTION,
    LORA,
    MAPS,
    MATHS,
    ONLY,
    PERMUTED,
    PRETRAINING,
    RELORA,
    REMORA,
    ROTATION,
    SHARING,
    Group,
    head,
)
from analysis.questions.own_rate.curves import FEWEST
from analysis.regression.study import SCREENING_SEEDS
from analysis.report import words
from analysis.table.factors import FULL

_TABLE_1 = (FULL, LORA, "LoRA+", "DoRA", RELORA)
WANTED: Mapping[str, tuple[str, ...]] = {  # AsyLoRA is no level of the grid
    INSTRUCTION: (*_TABLE_1, ROTATION, SHARING), MATHS: (*_TABLE_1, *MAPS),
    CONTINUED: (*_TABLE_1, ROTATION, SHARING),
    PRETRAINING: (FULL, LORA, SHARING, RELORA, REMORA, PERMUTED),
}  # fmt: skip


def missing(groups: Sequence[Group], found: Sequence[Measured], *, drawn: bool) -> str:
    """Return what is missing, a sentence each; "" where all is there.

    Args:
        groups: of the table.
        found: what was measured of them.
        drawn: whether the losses of training could be read.
    """
    return " ".join(_sentences(groups, found, drawn=drawn))


def _sentences(groups: Sequence[Group], found: Sequence[Measured], *, drawn: bool) -> Iterator[str]:
    for setting, wanted in WANTED.items():
        own = [g for g in groups if g.setting == setting]
        arms = {head(arm) for g in own for arm in g.arms}
        lost = [arm for arm in wanted if arm not in arms]
        if not own:
            yield f"There are no runs of {setting}."
        elif lost:
            yield f"Of {setting} these arms did not run: {listed(lost, limit=10)}."
        if own and setting != PRETRAINING and own[0].budget == ONLY:
            yield f"{setting.capitalize()} ran at one rank, the paper at two."
    of_pretraining = [g for g in groups if g.setting == PRETRAINING]
    rates = [int(n) for g in of_pretraining for n in g.runs.groupby("arm")["rate"].nunique()]
    if rates and min(rates) < FEWEST:
        yield (
            f"In pretraining some arms ran at {words.count(min(rates), 'learning rate')}: that one "
            "of them would do better at another is not excluded."
        )
    if of_pretraining and not drawn:
        yield "The losses of training do not lie beside the table: figure 4 is left out."
    if not any(one.measure in COUNTS for one in found):
        yield "Spectra were not measured (evaluate.measures=[spectrum_counts]): no figure 5."
    seeds = [len(c.seeds) for one in found if one.measure == PERPLEXITY for c in one.found.curves]
    if seeds and np.median(seeds) <= SCREENING_SEEDS:
        yield (
            f"Arms have {words.count(int(np.median(seeds)), 'seed')} (median): a first look. "
            "With so few, intervals lean on the noise that all arms have in common."
        )
