"""A grid over two settings and the seed, from the command line to the page: nothing is pooled."""

import json

import pandas as pd
import pytest

from ablate import cli
from ablate.experiment.design import names
from ablate.results.record import LEVEL_PATHS, flattened
from ablate.results.store import Store
from analysis.regression.default_model import default_formula
from analysis.report import build
from analysis.table.factors import factors_of
from analysis.table.frame import load, study_rows

pytestmark = pytest.mark.slow

ROWS = 24
DROPOUT, PATH = "adapter.options.dropout", "dataset.path"


def write_data(folder, word):
    lines = [{"instruction": f"Say {word} {n}.", "input": "", "output": f"{word} {n}"}
             for n in range(ROWS)]  # fmt: skip
    path = folder / f"{word}.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def sweep(out, *words):
    common = [
        "dataset=local", "dataset.format=alpaca", "adapter=lora", "rank=2", "plw=0",
        "model=micro_0", "train.lr=0.1", "train.max_steps=2", "placement.layers=[0]",
        "evaluate=none", "evaluate.tasks=[micro_pronouns,micro_knowledge]", "evaluate.limit=100",
        "report=false", "hydra/launcher=basic", f"out={out}",
    ]  # fmt: skip
    assert cli.main(["sweep", *common, *words]) == 0


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    paths = [write_data(folder, word) for word in ("north", "south")]
    out = folder / "out"
    sweep(out, f"dataset.path={paths[0]},{paths[1]}", f"{DROPOUT}=0,0.1", "seed=0,1")
    return out


def test_both_keys_are_factors_of_the_model_the_tables_and_the_figures(swept, tmp_path):
    frame = load(swept)
    rows = study_rows(frame)
    assert rows["run"].nunique() == 8
    assert set(rows["dataset"]) == {"north.jsonl", "south.jsonl"}
    assert set(rows["adapter"]) == {"lora dropout 0", "lora dropout 0.1"}
    found = factors_of(rows)
    assert [f.column for f in found] == ["dataset", PATH, "adapter", DROPOUT, "seed"]
    model = default_formula(frame)
    assert f"C(`{DROPOUT}`)" in model.formula
    assert " + seed + " in f"{model.formula} + "
    assert model.left_out == []
    page = build.build(swept, tmp_path / "report").read_text()
    for word in ("north.jsonl", "south.jsonl", "lora dropout 0.1 r2", PATH, DROPOUT):
        assert word in page
    assert "too little here to compare" not in page
    assert "all (but placement.layers as given)" in page
    tables = {p.stem: pd.read_csv(p) for p in (tmp_path / "report" / "tables").glob("*.csv")}
    assert tables["cells"]["runs"].tolist() == [2, 2, 2, 2]
    assert tables["grid"].set_index("factor")["count"][DROPOUT] == 2
    assert tables["grid"].set_index("factor")["levels"]["placement.layers"] == "[0]"
    assert set(tables["arms"]["adapter"]) == {"lora dropout 0", "lora dropout 0.1"}
    assert tables["arms"]["n"].sum() == 8


def test_the_levels_of_the_table_are_those_of_the_configurations(swept):
    """Two paths to a level: the sweep's own names, and what each record says was run."""
    store, checked = Store(swept), 0
    for name in names(swept):
        if name["levels"]["adapter"] == "none":
            continue
        config = flattened(store.record(name["train_key"])["config"])
        for column, level in name["levels"].items():
            if column == "study":
                continue
            stated = config[LEVEL_PATHS.get(column, column)]
            assert level == (stated if not isinstance(stated, list) else json.dumps(stated)), column
            checked += 1
    # The levels, and what was given by its path: format, path, dropout, layers, max_steps.
    assert checked == 8 * (len(LEVEL_PATHS) + 5)


def test_a_second_sweep_over_another_key_fills_in_what_the_first_had(swept):
    path = next(swept.parent.glob("north.jsonl"))
    sweep(swept, f"dataset.path={path}", f"{DROPOUT}=0", "seed=0", "train.warmup_ratio=0.5")
    table = pd.read_parquet(swept / "results.parquet")
    trained = table[table["adapter"] != "none"]
    assert trained["train.warmup_ratio"].notna().all()
    warm = trained.groupby("train_key")["train.warmup_ratio"].first()
    assert sorted(warm.unique()) == [0.03, 0.5]
    assert (warm == 0.5).sum() == 1


def test_execution_alone_makes_names_of_the_same_runs(swept):
    path = next(swept.parent.glob("north.jsonl"))
    sweep(swept, f"dataset.path={path}", f"{DROPOUT}=0", "seed=0", "execution.eval_batch_size=8,16")
    table = pd.read_parquet(swept / "results.parquet")
    assert table[table["adapter"] != "none"]["train_key"].nunique() == 9
    frame = load(swept)
    assert any(t.startswith("execution.eval_batch_size varies") for t in frame.attrs["left_out"])
