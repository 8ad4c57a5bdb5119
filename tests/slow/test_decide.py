"""`ablate decide` on runs that are trained, and its rule over ten thousand campaigns."""

import json

import pytest

from ablate import cli
from ablate.results.store import Store
from benchmarks.decide import NOISES, campaigns

pytestmark = pytest.mark.slow

COMMON = ["adapter=lora", "rank=2", "train.lr=1e-3", "evaluate=none", "hydra/launcher=basic"]
RULE = ["--score", "test", "--margin", "0.3", "--looks", "3,4"]


def test_a_null_edit_is_rejected_and_a_true_one_accepted(tmp_path, capsys):
    """The null edit draws the same run anew, the true one trains for 30 steps in place of 2."""

    def answer(base, candidate):
        words = ["decide", base, candidate, *COMMON, f"out={tmp_path}", *RULE, "--json"]
        status = cli.main(words)
        return status, json.loads(capsys.readouterr().out)

    status, found = answer("train.max_steps=30", "train.max_steps=30 sham=b")
    assert (status, found["verdict"], found["seeds"]) == (4, "reject", [0, 1, 2])
    assert found["low"] < 0 < found["high"] < 0.3
    assert found["runs_trained"] == 6
    status, found = answer("train.max_steps=2", "train.max_steps=30")
    assert (status, found["verdict"], found["seeds"]) == (0, "accept", [0, 1, 2, 3])
    assert 0 < found["low"] < found["estimate"]
    assert found["runs_trained"] == 5  # three of the candidate's are recorded
    assert found["recorded_before"] == [0, 1, 2]
    before = Store(tmp_path).recorded()
    assert answer("train.max_steps=2", "train.max_steps=30")[1]["asked_before"]
    assert Store(tmp_path).recorded() == before


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("edits", ["null", "mixed"])
def test_ten_thousand_campaigns(edits, kind):
    """The first 100 decisions may spend a fortieth; what true effects pass on is theirs."""
    for sd in (0.8, 6.0):
        found = campaigns(edits, kind, sd, count=10_000)
        assert found.any_false <= 0.025 + 3 * 0.0016
