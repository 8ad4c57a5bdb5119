"""How often a study's page finds what is not there, on the study's own grid and noise.

    python -m benchmarks.false_positives RESULTS --draws 200

What a question asks about is shuffled among the cells of the recorded table, so that it has no
effect whatever it had; everything else stays as it was. The page's own sections then read every
shuffled table. Told is how many of them have any headline that is distinguishable.

    when_to_mask   ratio and number of rows, among the data sets
    wit            the scale of both weights, among the pairs of one ratio
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.papers.wit import section as weight_pairs
from analysis.questions.weight_pairs.estimate import with_ratio
from analysis.questions.when_to_mask import section as when_to_mask
from analysis.regression.model import Request
from analysis.regression.study import OF_THE_DATA, STRATUM, Study
from analysis.report.build import fitted_study
from analysis.report.headline import Headline
from analysis.table.frame import from_results, read
from analysis.table.run_panels import grouped

Shuffle = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def sizes_shuffled(frame: pd.DataFrame, draw: np.random.Generator) -> pd.DataFrame:
    """Return the frame with ratio and rows given to other data sets."""
    names = list(OF_THE_DATA)
    places = frame.dropna(subset=names).drop_duplicates("dataset").set_index("dataset")[names]
    moved = places.set_axis(draw.permutation(places.index.to_numpy()))
    own = frame["dataset"].astype(str)
    return frame.assign(**{name: own.map(moved[name]).where(frame[name].notna()) for name in names})


def scales_shuffled(frame: pd.DataFrame, draw: np.random.Generator) -> pd.DataFrame:
    """Return the frame with the pairs of each ratio of weights exchanged, for all scores alike."""
    weights = ["plw", "completion_weight"]
    changed = frame[weights].astype(float)
    rows = frame[frame["control"].eq("") & ~frame["is_base"]]
    for _, panel in grouped(rows, STRATUM):
        cells = panel[weights].drop_duplicates().astype(float)
        named = with_ratio(cells.set_axis(["prompt", "answer"], axis=1).assign(score=0.0, block=""))
        for _, own in named.groupby("ratio"):
            old = own[["prompt", "answer"]].to_numpy()
            for before, after in zip(old, old[draw.permutation(len(old))], strict=True):
                at = panel.index[(panel[weights].to_numpy(dtype=float) == before).all(axis=1)]
                changed.loc[at, weights] = after
    return frame.assign(**{name: changed[name] for name in weights})


QUESTIONS: Mapping[str, tuple[Callable[[Study], list[Headline]], Shuffle]] = {
    "when_to_mask": (when_to_mask.headlines, sizes_shuffled),
    "wit": (weight_pairs.headlines, scales_shuffled),
}


def rate(study: Study, question: str, draws: int, seed: int = 0) -> dict[str, object]:
    """Return how many of `draws` shuffled tables have a headline that is distinguishable.

    Args:
        study: of the recorded table.
        question: one of `QUESTIONS`.
        draws: shuffled tables.
        seed: of the shuffling.
    """
    headlines, shuffled = QUESTIONS[question]
    draw = np.random.default_rng(seed)
    found = [headlines(replace(study, frame=shuffled(study.frame, draw))) for _ in range(draws)]
    clear = [[one.clear for one in lines] for lines in found]
    return {
        "question": question,
        "tables": draws,
        "with a distinguishable headline": sum(map(any, clear)),
        "headlines a table": len(found[0]),
        "share of headlines": float(np.mean(clear)),
    }


def main() -> None:
    """Print the rates of every question that the table answers, as JSON lines."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    asked.add_argument("results", type=Path)
    asked.add_argument("--draws", type=int, default=200)
    given = asked.parse_args()
    raw = read(given.results)
    study = fitted_study(raw, from_results(raw), None, Request())
    for name, (headlines, _) in QUESTIONS.items():
        if headlines(study):
            print(json.dumps(rate(study, name, given.draws)))


if __name__ == "__main__":
    main()
