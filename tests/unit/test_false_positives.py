"""Tables in which nothing is left of what a question asks about."""

import numpy as np
import pandas as pd

from analysis.table.frame import from_results
from benchmarks.false_positives import rate, scales_shuffled, sizes_shuffled
from tests.unit import test_weight_pairs, test_when_to_mask


def test_places_change_owners_and_nothing_else():
    frame = from_results(test_when_to_mask.results(-4.0, 5.0))
    new = sizes_shuffled(frame, np.random.default_rng(0))
    names = ["rg", "train_rows"]
    for table in (frame, new):
        assert table.groupby("dataset", observed=True)[names].nunique().max().max() == 1
    first = [t.drop_duplicates("dataset").set_index("dataset")[names] for t in (frame, new)]
    assert sorted(map(tuple, first[0].to_numpy())) == sorted(map(tuple, first[1].to_numpy()))
    assert (first[0] != first[1]).to_numpy().any()
    pd.testing.assert_frame_equal(frame.drop(columns=names), new.drop(columns=names))


def test_pairs_are_exchanged_within_their_ratio():
    frame = from_results(test_weight_pairs.results(-3.0))
    new = scales_shuffled(frame, np.random.default_rng(0))
    ran = ~frame["is_base"] & (frame["completion_weight"].astype(float) > 0)
    ratio = [(t["plw"] / t["completion_weight"])[ran].astype(float) for t in (frame, new)]
    np.testing.assert_allclose(ratio[0], ratio[1])
    assert (frame["completion_weight"] != new["completion_weight"])[ran].mean() > 0.2
    weights = [t.groupby("run", observed=True)[["plw", "completion_weight"]] for t in (frame, new)]
    assert weights[1].nunique().max().max() == 1  # all scores of a run move together
    counts = [w.first().value_counts() for w in weights]
    pd.testing.assert_series_equal(counts[0].sort_index(), counts[1].sort_index())


def test_a_strong_effect_of_the_scale_is_not_found_in_shuffled_tables():
    study = test_weight_pairs.study_of(-3.0)
    found = rate(study, "wit", draws=12)
    assert found["tables"] == 12
    assert found["with a distinguishable headline"] <= 3  # of 0.6 expected: P(> 3) = 0.003
