"""Every adapter, start, optimizer and regulariser: a run that is interrupted ends bit-identical."""

import pytest

from ablate.training.checkpoints import keeper
from tests.levels import files
from tests.unit.test_checkpoints import contents, planned, same, trained

pytestmark = pytest.mark.slow

OFF = {"adapter": "none", "init": "default", "optimizer": "adamw", "regulariser": "none"}
LEVELS = [(f, level) for f, off in OFF.items() for level in files(f) if level != off]


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    monkeypatch.setattr(keeper, "LEAST_SHARE", 0)


@pytest.mark.parametrize(("factor", "level"), LEVELS)
def test_a_resumed_run_ends_as_the_undisturbed_one(factor, level, tmp_path, monkeypatch):
    if any(word in level for word in ("bnb", "paged", "loftq")):
        pytest.skip("needs a GPU")
    named = planned(f"{factor}={level}", "train.weight_decay=0.1")
    whole = trained(named, tmp_path / "whole", monkeypatch)
    broken = trained(named, tmp_path / "broken", monkeypatch, interruptions=(4,))
    same(contents(broken, named.key), contents(whole, named.key))
    assert broken.record(named.key)["provenance"]["resumed"] == [4]
