"""study=confounds: every scale crosses what it says; masked runs stand under both normalisers."""

from collections import Counter

import numpy as np
import pytest

from ablate.config import grid
from ablate.config.compose import expand
from ablate.config.composer import config_loader
from ablate.experiment.identity import Memo, identify

SETTINGS = ("dataset", "normaliser", "scope", "batch")


@pytest.fixture(scope="module")
def found():
    loader = config_loader()
    scales = {}
    for scale in ("paper", "micro", "smoke"):
        grids = list(grid.cells(expand(["study=confounds", f"scale={scale}"], loader=loader)))
        assert [one.error for one in grids if one.error] == []
        scales[scale] = [one.cell for one in grids if one.cell.adapter.name == "full"]
    return scales


def place(cell):
    loss, train = cell.loss, cell.train
    return cell.dataset.name, loss.normaliser, loss.scope, train.batch_size


def levels(cells, name):
    return {dict(zip(SETTINGS, place(c), strict=True))[name] for c in cells}


@pytest.mark.parametrize("scale", ["paper", "micro", "smoke"])
def test_masked_and_unmasked_are_crossed_with_everything(found, scale):
    """At every place both doses ran at the same rates under the same seeds: a full factorial."""
    runs = Counter((c.masking.name, place(c), c.train.lr, c.seed) for c in found[scale])
    assert set(runs.values()) == {1}
    doses = [{key[1:] for key in runs if key[0] == mode} for mode in ("instruction", "none")]
    assert doses[0] == doses[1]
    assert {c.plw for c in found[scale]} == {0.0, 1.0}
    places = {place(c) for c in found[scale]}
    wanted = 1
    for name in SETTINGS:
        wanted *= len(levels(found[scale], name))
    assert len(places) == wanted
    assert levels(found[scale], "normaliser") == {"weight", "completion"}
    for at in places:
        rates = sorted({c.train.lr for c in found[scale] if place(c) == at})
        steps = np.diff(np.log2(rates))
        assert len(rates) >= 3
        assert steps == pytest.approx(np.full(len(steps), steps[0]), rel=2e-3)
        assert len({c.seed for c in found[scale] if place(c) == at}) >= 2


@pytest.mark.parametrize("scale", ["paper", "micro"])
def test_the_middle_rate_goes_with_the_root_of_the_batch(found, scale):
    """Each batch size has seeds of its own, so that places are independent."""
    middle = {}
    for c in found[scale]:
        middle.setdefault(c.train.batch_size, set()).add(c.train.lr)
    (small, own), (large, other) = sorted(middle.items())
    ratio = np.median(list(other)) / np.median(list(own))
    assert ratio == pytest.approx((large / small) ** 0.5, rel=2e-3)
    seeds = {b: {c.seed for c in found[scale] if c.train.batch_size == b} for b in (small, large)}
    assert not seeds[small] & seeds[large]
    assert levels(found[scale], "scope") == {"batch", "example"}


def test_the_paper_scale_trains_as_alpaca_did(found):
    for c in found["paper"]:
        assert (c.model.name, c.adapter.name, c.embeddings) == ("llama_2_7b", "full", "trained")
        assert (c.train.epochs, c.train.schedule, c.train.warmup_ratio) == (3, "cosine", 0.03)
        assert (c.train.weight_decay, c.train.max_length) == (0.0, 2048)
    rates = sorted({c.train.lr for c in found["paper"] if c.train.batch_size == 64})
    assert rates[0] < 2e-5 < rates[-1]  # Alpaca's own, at batches of 128


def test_a_normaliser_does_nothing_to_masked_runs(found):
    """They are one run under both names, trained once; unmasked runs are two."""
    cells = [c for c in found["smoke"] if c.train.lr == 0.008 and c.seed == 0]
    memo, keys = Memo(), {}
    for c in cells:
        keys.setdefault(c.masking.name, set()).add(identify(c, memo).train_key)
    assert {mode: len(own) for mode, own in keys.items()} == {"instruction": 1, "none": 2}
