"""The columns of the results table: a level or a setting's path for whatever varies in a grid."""

import itertools
import json
import os
from io import BytesIO

import pandas as pd
import pytest

from ablate.config.build import plain
from ablate.experiment import design
from ablate.experiment.identity import digest
from ablate.results import record
from ablate.results.record import (
    LEVEL_PATHS,
    flattened,
    levels_of,
    setting_columns,
    shown_settings,
)
from tests import stored
from tests.levels import cell


def settings(level="lora", **changes):
    """The flattened configuration of a small cell, some settings of it changed by path."""
    return flattened(plain(cell(level))) | {k.replace("__", "."): v for k, v in changes.items()}


def columns(*cells, asked=()):
    return list(setting_columns(cells, asked))


def test_every_level_leads_to_a_setting():
    found = settings()
    assert set(LEVEL_PATHS.values()) <= set(found)
    levels = levels_of(found, "s")
    assert {n: found[p] for n, p in LEVEL_PATHS.items()} == {
        k: v for k, v in levels.items() if k != "study"
    }


def test_a_setting_that_varies_has_a_column_and_levels_have_none_beside_their_own():
    pairs = itertools.product((0.0, 0.1), (2, 4))
    cells = [settings(train__warmup_ratio=w, rank=r, train__lr=r / 100) for w, r in pairs]
    assert columns(*cells) == ["train.warmup_ratio"]


def test_what_the_files_of_two_adapters_set_differently_is_no_factor():
    assert columns(settings("lora"), settings("mora"), settings("full")) == []


def test_a_group_and_a_setting_inside_it_vary_together():
    cells = [settings(level) for level in ("lora", "mora", "full")]
    cells += [settings("lora", adapter__options__dropout=0.1)]
    assert columns(*cells) == ["adapter.options.dropout"]
    shown = [shown_settings(c, ["adapter.options.dropout"]) for c in cells]
    assert shown[0] == {"adapter.options.dropout": 0.0}
    assert shown[2] == {}  # full fine-tuning has no such option


def test_a_setting_that_was_asked_for_by_its_path_is_shown_though_it_does_not_vary():
    cells = [settings(placement__layers=[0], evaluate__limit=5)]
    asked = {"placement.layers", "evaluate.limit"}
    assert columns(*cells) == []
    assert columns(*cells, asked=asked) == ["placement.layers"]
    confounded = [settings("lora", train__epochs=1.0), settings("mora", train__epochs=2.0)]
    assert columns(*confounded) == []
    assert columns(*confounded, asked={"train.epochs"}) == ["train.epochs"]


@pytest.mark.parametrize("path", ["train.betas", "train.betas[0]", "train.betas.0"])
def test_a_path_into_a_list_is_the_lists_column(path):
    pairs = {"lora": 0.8, "mora": 0.9}
    cells = [settings(level, train__betas=[b, 0.999]) for level, b in pairs.items()]
    assert columns(*cells, asked={path}) == ["train.betas"]


def test_null_and_lists_are_levels_and_what_a_cell_lacks_is_empty(tmp_path):
    cells = [
        settings(train__clip=None, placement__layers="all"),
        settings(train__clip=1.0, placement__layers=[0, 1]),
        settings("full", train__clip=1.0, adapter__options__x=3),
    ]
    names = ["train.clip", "placement.layers", "adapter.options.x"]
    table = pd.read_parquet(BytesIO(record.table([shown_settings(c, names) for c in cells])))
    assert table["train.clip"].tolist() == ["null", "1.0", "1.0"]
    assert table["placement.layers"].tolist() == ["all", "[0, 1]", "all"]
    assert table["adapter.options.x"].isna().tolist() == [True, True, False]
    assert pd.api.types.is_numeric_dtype(table["adapter.options.x"])


def entry(key, **changes):
    found = settings(**changes)
    return {"levels": levels_of(found, "s"), "settings": found, "train_key": key,
            "score_keys": [f"{key}-s"], "alias": False, "effective_plw": 0.0, "rg": 1.0,
            "train_rows": 5}  # fmt: skip


def write_design(out, entries, *, when, **about):
    (out / "designs").mkdir(parents=True, exist_ok=True)
    path = out / "designs" / f"{digest(entries)}.json"
    path.write_text(json.dumps({"study": "s", "names": entries} | about))
    os.utime(path, (when, when))


def test_a_later_sweep_fills_its_factor_into_the_earlier_names(tmp_path):
    first = [entry("a", seed=0), entry("b", seed=1)]
    later = [entry("a", seed=0), entry("c", seed=0, train__epochs=9.0)]
    write_design(tmp_path, first, when=1, asked=[], common={})
    write_design(tmp_path, later, when=2, asked=["train.epochs"], common={})
    usual = settings()["train.epochs"]
    found = {n["train_key"]: n["levels"]["train.epochs"] for n in design.names(tmp_path)}
    assert found == {"a": usual, "b": usual, "c": 9.0}
    assert len(design.names(tmp_path)) == 3  # run a has one name, not two


def test_an_older_design_takes_its_settings_from_the_record(tmp_path):
    old = entry("a") | {"settings": None}
    del old["settings"]
    stored.put(tmp_path, "a", config=plain(cell("lora")))
    write_design(tmp_path, [old], when=1)
    new = [entry("b", train__warmup_ratio=0.5)]
    write_design(tmp_path, new, when=2, asked=["train.warmup_ratio"], common={})
    levels = [n["levels"]["train.warmup_ratio"] for n in design.names(tmp_path)]
    assert levels == [settings()["train.warmup_ratio"], 0.5]


def test_a_level_that_older_names_do_not_state_is_what_they_had(tmp_path):
    """A name from before there were token rules, and the same cell asked for again, are one."""
    old, new = entry("a"), entry("a")
    del old["levels"]["token_rule"], old["settings"]["loss.token_rule"]
    write_design(tmp_path, [old], when=1, asked=[], common={})
    write_design(tmp_path, [new, entry("b", loss__token_rule="dft")], when=2, asked=[], common={})
    found = [(n["train_key"], n["levels"]["token_rule"]) for n in design.names(tmp_path)]
    assert found == [("a", "none"), ("b", "dft")]
    assert levels_of(old["settings"], "s")["token_rule"] == "none"


def test_names_that_differ_in_execution_alone_are_two_names_of_one_run(tmp_path):
    both = [entry("a", execution__threads=t) for t in (1, 2)]
    write_design(tmp_path, both, when=1, asked=["execution.threads"], common={})
    levels = [n["levels"]["execution.threads"] for n in design.names(tmp_path)]
    assert levels == [1, 2]


def test_the_base_has_nothing_of_the_training():
    found = settings(train__epochs=9.0, dataset__path="x")
    keys = ["train.epochs", "dataset.path"]
    assert shown_settings(found, keys, base=True) == {"dataset.path": "x"}


def test_sizes_given_for_a_plan_are_no_factors():
    sizes = [{f"dataset__published__{k}": v} for k, v in (("rows", 10), ("rows", 20))]
    cells = [settings(**size, model__shape__layers=n) for n, size in enumerate(sizes)]
    assert columns(*cells, asked=("dataset.published.rows", "model.shape.layers")) == []
