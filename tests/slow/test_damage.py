"""Every file of a real folder of results is hurt in every way; the same command makes it whole."""

import shutil

import pandas as pd
import pytest

from ablate import cli
from ablate.experiment.status import damaged_lines, states
from ablate.results.store import Store
from tests.damage import WAYS, WHOLE

pytestmark = pytest.mark.slow

GRID = [
    "masking=instruction,none", "plw=0.1", "adapter=lora", "rank=2", "train.lr=1e-3",
    "train.max_steps=2", "evaluate=none", "evaluate.tasks=[micro_questions]", "evaluate.limit=10",
    "evaluate.heldout=[]", "report=false", "hydra/launcher=basic",
]  # fmt: skip
FILES = ("record.json", "config.yaml", "items.parquet", "history.parquet", "log.txt")
WITHOUT = ("costs", "provenance")  # time, host and process


def sweep(out):
    assert cli.main(["sweep", *GRID, f"out={out}"]) == 0


def content(out):
    """What a folder holds of every run, times and machines left out."""
    store, found = Store(out), {}
    for key in store.recorded():
        assert store.fault(key, every_byte=True) == ""
        record = {k: v for k, v in store.record(key).items() if k not in WITHOUT}
        tables = [pd.read_parquet(store.folder(key) / f"{n}.parquet") for n in ("items", "history")]
        found[key] = (record, [table.to_json() for table in tables])
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    sweep(out)
    return out


@pytest.mark.parametrize("way", [*WAYS, *WHOLE])
def test_a_hurt_folder_is_whole_after_the_same_sweep(whole, tmp_path, way):
    """Of files, one of each kind in turn: the state `way` of a file is tried on all of them."""
    for file in FILES if way in WAYS else ("",):
        out = tmp_path / (file or "out")
        shutil.copytree(whole, out, symlinks=True)
        key = sorted(Store(out).recorded())[1]
        if way in WAYS:
            WAYS[way](out / "cells" / key / file)
        else:
            WHOLE[way][0](out, key)
        told = damaged_lines(out)
        assert (
            len([line for line in told if key in line])
            == (WHOLE[way][1] if way in WHOLE else file != "log.txt")
            or not (out / "designs").is_dir()
        )
        sweep(out)
        assert content(out) == content(whole)
        assert {state.state for state in states(out)} == {"done"}
