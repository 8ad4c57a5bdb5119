"""The one list of factors: whatever varies is in the model, the tables and the figures."""

import random
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from ablate.results.record import LEVEL_PATHS, LEVELS, shown_settings
from analysis.questions.adapters.section import sides
from analysis.questions.settings.section import differences, over_weights
from analysis.regression.default_model import default_formula, pooled
from analysis.regression.study import fitted
from analysis.report import overview
from analysis.report.trust import trust, warnings
from analysis.table.carried import shortest_endings, with_reference
from analysis.table.cells import run_means, without_gaps
from analysis.table.factors import (
    GROUPS,
    PARTS,
    _determines,
    cell_names,
    factors_of,
    level_columns,
    level_text,
    most_common,
    readable,
    stratum_names,
)
from analysis.table.frame import from_results, study_rows
from analysis.table.run_panels import PANEL, task_panels
from tests.fake_results import fake_results
from tests.settings import settings

CONTROLS = ("sham", "shuffle_prompts", "seed")  # what they compare has sections of its own
EVERY = dict(settings())
DRAWN = [k for k in EVERY if k.partition(".")[0] != "execution"]
COLUMN = {path: name for name, path in LEVEL_PATHS.items()}
PAIRS = 36


def small(seeds=2):
    """A small study: full and LoRA of one rank, two weights of one mode, one data set."""
    table = fake_results(1, seeds=seeds, plws=(0.0, 0.1), controls=False)
    kept = table["adapter"].isin(["full", "lora"]) & table["masking"].isin(["instruction", "none"])
    return table[kept & (table["rank"] == 4) & (table["dataset"] == "micro_short")]


def crossed(table, keys, *, effect=3.0, seed=0):
    """The table's runs at every combination of two values of some keys, each with an effect."""
    rng = np.random.default_rng(seed)
    parts = [table]
    for key, (low, high) in keys.items():
        column = COLUMN.get(key, key)
        values = (
            shown_settings({key: low} | {}, [key])[key],
            shown_settings({key: high}, [key])[key],
        )
        if isinstance(values[0], str) != isinstance(values[1], str):
            values = tuple(map(str, values))
        made = []
        for part in parts:
            for n, value in enumerate(values):
                own = part.assign(train_key=part["train_key"] + f"|{key}{n}", **{column: value})
                own["value"] = own["value"] + n * effect / 100
                made.append(own)
        parts = made
    found = pd.concat(parts, ignore_index=True)
    noise = dict.fromkeys(found["train_key"].unique(), 0.0)
    noise = {k: rng.normal(0, 0.005) for k in noise}
    return found.assign(value=found["value"] + found["train_key"].map(noise))


def drawn():
    """Pairs of keys drawn at random from the configuration; the seed is fixed."""
    rng = random.Random(8)
    usable = [k for k in DRAWN if COLUMN.get(k, k) not in CONTROLS and k != "plw"]
    return [tuple(sorted(rng.sample(usable, 2))) for _ in range(PAIRS)]


# --- the list ------------------------------------------------------------------------------------


def test_every_level_and_every_group_belongs_to_a_part():
    assert set(LEVELS) - {"study"} <= set(PARTS)
    dotted = {path.partition(".")[0] for path in EVERY if "." in path}
    assert dotted == set(GROUPS)


def test_the_walk_finds_the_settings_of_the_configuration():
    assert {"train.warmup_ratio", "adapter.options.dropout", "dataset.path", "placement.layers",
            "loss.label_smoothing", "regulariser.kl", "rank", "train.lr"} <= set(EVERY)  # fmt: skip
    assert not [k for k in EVERY if k.endswith((".name", ".kind"))]


@pytest.mark.parametrize("keys", drawn(), ids="+".join)
def test_any_two_settings_are_factors_of_model_tables_and_figures(keys):
    raw = crossed(small(), {k: EVERY[k] for k in keys})
    frame = from_results(raw)
    found = factors_of(study_rows(frame))
    model = default_formula(frame)
    study = fitted(raw, frame)
    said = " ".join((*model.reasons, *model.left_out, *model.in_doubt))
    names = re.findall(r"`([^`]+)`|([A-Za-z_]\w*)", model.formula)
    used = {a or b for a, b in names}
    grid = overview.section(raw, None).blocks[1].table.frame.set_index("factor")["count"]
    drawn_labels = differences(study)
    drawn_labels = set(drawn_labels["setting"]) if len(drawn_labels) else set()
    arms = {a for _, means in sides(study) for a in means.table["adapter"].astype(str)}
    for key in keys:
        column = COLUMN.get(key, key)
        factor = found["rate" if column == "lr" else column]
        assert len(factor.levels) == 2
        stands = {factor.column, factor.inside, *(["log2_rank"] if column == "rank" else [])}
        assert used & stands or column in said
        assert grid[column] == 2
        if factor.inside == "adapter":
            assert any(factor.text(level) in arm for level in factor.levels for arm in arms)
        elif factor.part == "stratum":
            side = "dataset" if factor.inside == "dataset" else "model"
            both = all(k.partition(".")[0] == side for k in keys)  # each combination is a set
            assert study.rows[side].nunique() == (4 if both else 2)
        elif column != "rank":
            assert factor.column in drawn_labels
    runs = study.rows.groupby(list(PANEL), observed=True)["run"].nunique().sum()
    assert sum(model.fit.n for model in study.panels) == runs  # none is lost for want of a setting


@pytest.mark.parametrize("key", [k for k in EVERY if k.startswith("execution.")])
def test_how_a_run_is_computed_is_no_factor_and_the_page_says_so(key):
    low, high = (shown_settings({key: v}, [key])[key] for v in EVERY[key])
    table = small()
    raw = pd.concat([table.assign(**{key: low}), table.assign(alias=True, **{key: high})])
    frame = from_results(raw)
    assert key not in factors_of(study_rows(frame))
    (said,) = frame.attrs["left_out"]
    assert (
        said == f"{key} varies, but does not change a run: its levels are names of the same runs."
    )
    assert ("Not in the model.", said) in warnings(fitted(raw, frame))


def test_scores_under_several_evaluation_settings_count_once_and_the_page_says_which():
    table = small()
    again = table.assign(score_key=table["score_key"] + "2", **{"evaluate.limit": 20})
    raw = pd.concat([table.assign(**{"evaluate.limit": 10}), again])
    frame = from_results(raw)
    assert set(frame["evaluate.limit"].dropna()) == {10}
    assert frame.attrs["left_out"] == [
        "evaluate.limit varies, but a run counts once: its scores are those with evaluate.limit=10."
    ]


# --- what cannot be told apart -------------------------------------------------------------------


def test_a_setting_that_one_adapter_has_is_estimated_within_it():
    table = small()
    lora = table["adapter"] == "lora"
    key = "adapter.options.dropout"
    raw = pd.concat([table[~lora], crossed(table[lora], {key: (0.0, 0.1)}, effect=5.0)])
    frame = from_results(raw)
    assert set(frame["adapter"]) == {"full", "lora dropout 0", "lora dropout 0.1", "none"} & set(
        frame["adapter"]
    )
    rows = study_rows(frame)
    assert factors_of(rows)[key].only == ()  # filled in for the model
    assert factors_of(frame)[key].only == ("lora",)
    model = default_formula(frame)
    own = f"{key} varies: an effect of its own, among runs of lora, which alone have it."
    assert own in model.reasons
    for panel in fitted(raw, frame).panels:
        assert panel.fit.left_out == ()
        (name,) = [n for n in panel.fit.fixef.index if key in n]
        assert panel.fit.fixef[name] == pytest.approx(5.0, abs=1.5)


def test_settings_that_go_together_are_named_and_one_is_left_out():
    raw = crossed(small(), {"train.epochs": (1.0, 2.0)})
    raw["train.warmup_ratio"] = raw["train.epochs"] / 10
    frame = from_results(raw)
    model = default_formula(frame)
    assert "train.epochs" in model.formula
    assert "train.warmup_ratio" not in model.formula
    assert model.left_out == [
        "train.warmup_ratio varies but is not in the model: it changes together with "
        "train.epochs, level by level, so that no effect of its own can be told apart, and "
        "differences between levels of train.epochs may be due to it."
    ]
    found = factors_of(study_rows(frame))["train.warmup_ratio"]
    assert found.aliases == ("train.epochs",)
    study = fitted(raw, frame)
    assert ("Not in the model.", model.left_out[0]) in warnings(study)


def test_an_arm_that_ran_at_another_setting_alone_stays_in_the_comparisons_and_is_named():
    """LoRA at a warm-up of its own: its differences stand, and the page says so."""
    table = small(seeds=3)
    other = table.assign(**{"train.warmup_ratio": np.where(table["adapter"] == "lora", 0.1, 0.03)})
    plain, study = (fitted(t, from_results(t)) for t in (table, other))
    for one, expected in ((plain, False), (study, True)):
        assert set(one.main["adapter"].astype(str)) == {"full", "lora"}
        said = [s for s in one.in_doubt if "ran at train.warmup_ratio" in s]
        assert bool(said) is expected
    first, second = (
        {str(labels): means.table["estimate"].tolist() for labels, means in sides(one)}
        for one in (plain, study)
    )
    assert first.keys() == second.keys()
    for labels in first:
        assert first[labels] == pytest.approx(second[labels], rel=1e-12)
    assert "its own can be told apart, and differences between levels of adapter" in " ".join(
        study.left_out
    )


def test_a_nested_setting_is_determined_one_way_only():
    table = crossed(small(), {"train.epochs": (1.0, 2.0), "loss.label_smoothing": (0.0, 0.1)})
    last = table["train.epochs"].eq(2.0) & table["loss.label_smoothing"].eq(0.1)
    table["train.clip"] = np.where(table["train.epochs"] == 1.0, 1.0, np.where(last, 3.0, 2.0))
    found = factors_of(study_rows(from_results(table)))
    assert "train.clip" in found["train.epochs"].determined_by
    assert found["train.epochs"].aliases == ()


def test_a_setting_that_goes_with_the_seed_is_said_to():
    raw = small()
    raw = raw.assign(**{"train.epochs": 1.0 + raw["seed"]})
    (said,) = default_formula(from_results(raw)).in_doubt
    assert ("To be read with care.", said) in warnings(fitted(raw, from_results(raw)))
    assert said.startswith("train.epochs is in the model, but every seed ran one level of it")


def test_a_given_formula_that_passes_over_a_factor_is_told_on():
    frame = from_results(crossed(small(), {"train.epochs": (1.0, 2.0)}))
    found = factors_of(study_rows(frame))
    assert pooled(["task", "wp", "adapter", "seed"], found) == [
        "train.epochs varies (1, 2) but is not in the formula: runs that differ in it are pooled."
    ]


# --- two sweeps in one folder --------------------------------------------------------------------


def swept(*cells, seeds=3):
    """LoRA's runs of a small study at every one of some cells (settings by column), with noise."""
    table = small(seeds=seeds)
    table, rng, parts = table[table["adapter"] == "lora"], np.random.default_rng(3), []
    for n, cell in enumerate(cells):
        own = table.assign(train_key=table["train_key"] + f"|{n}", **cell)
        noise = {key: rng.normal(0, 0.01) for key in own["train_key"].unique()}
        parts.append(own.assign(value=own["value"] + own["train_key"].map(noise) + 0.02 * n))
    return pd.concat(parts, ignore_index=True)


WARM, EPOCHS = "train.warmup_ratio", "train.epochs"
TWO_SWEEPS = [{WARM: w, EPOCHS: 1.0} for w in (0.0, 0.2, 0.3)]
TWO_SWEEPS += [{WARM: 0.1, EPOCHS: e} for e in (2.0, 4.0)]


def test_levels_that_never_ran_beside_the_usual_one_are_compared_with_one_another():
    raw = swept(*TWO_SWEEPS)
    study = fitted(raw, from_results(raw))
    found = differences(study)
    assert study.usual == {WARM: "0.1", EPOCHS: "1"}
    assert set(zip(found["setting"], found["level"], found["against"], strict=True)) == {
        (WARM, "0.2", "0"), (WARM, "0.3", "0"), (EPOCHS, "4", "2"),
    }  # fmt: skip
    rows = study.rows
    for line in found[found["setting"] == EPOCHS].to_dict("records"):
        own = rows[(rows["side"] == line["side"]) & (rows["plw"] == line["plw"])]
        means = own[own[WARM] == 0.1].groupby(["seed", EPOCHS], observed=True)["score"].mean()
        pairs = means.unstack()
        test = ttest_rel(pairs[4.0], pairs[2.0])
        assert line["estimate"] == pytest.approx((pairs[4.0] - pairs[2.0]).mean())
        assert line["p"] == pytest.approx(test.pvalue)
    said = [text for _, text in warnings(study)]
    assert any(text.startswith("The runs do not tell these coefficients apart") for text in said)
    assert any(text.startswith(f"{EPOCHS} 1: no two runs there differ in") for text in said)


def test_a_setting_over_all_weights_is_the_mean_of_its_pairs():
    """A split plot: what a weight does to the setting is noise, as far as it can be told."""
    raw = swept({EPOCHS: 1.0}, {EPOCHS: 2.0})
    study = fitted(raw, from_results(raw))
    found = over_weights(study)
    assert set(found["weights"]) == {study.rows["plw"].nunique()}
    for line in found.to_dict("records"):
        own = study.rows[study.rows["side"] == line["side"]]
        means = own.groupby(["seed", "plw", EPOCHS], observed=True)["score"].mean().unstack()
        gap = means[float(line["level"])] - means[float(line["against"])]
        assert line["estimate"] == pytest.approx(gap.mean())
        by_weight = ttest_1samp(gap.groupby("plw").mean(), 0).pvalue
        assert line["p"] == pytest.approx(by_weight) or line["p"] == pytest.approx(
            ttest_1samp(gap, 0).pvalue
        )
    one = raw[raw["plw"] == raw["plw"].max()]
    assert not len(over_weights(fitted(one, from_results(one))))


def test_a_comparison_away_from_the_usual_settings_says_where_it_was_made():
    cells = [{WARM: w, EPOCHS: 1.0} for w in (0.0, 0.1)] + [{WARM: 0.1, EPOCHS: 2.0}]
    raw = swept(*cells, {WARM: 0.0, EPOCHS: 1.0, "scope": "example"})
    found = differences(fitted(raw, from_results(raw)))
    assert set(found.loc[found["setting"] == EPOCHS, "at"]) == {f"{WARM} 0.1"}
    assert set(found.loc[found["setting"] == WARM, "at"]) == {""}


def test_the_rank_of_an_arm_that_has_none_does_not_keep_runs_apart():
    raw = swept({"normaliser": "weight", "rank": 2}, {"normaliser": "completion", "rank": 8})
    raw = raw.assign(adapter="full")
    study = fitted(raw, from_results(raw))
    found = differences(study)
    assert set(found["setting"]) == {"normaliser"}
    assert set(found["at"]) == {""}
    raw = raw.assign(adapter="lora")  # whose ranks differ
    assert not len(differences(fitted(raw, from_results(raw))))


def test_arms_that_ran_beside_each_other_away_from_the_usual_settings_are_named():
    dropout = "adapter.options.dropout"
    raw = swept(*({dropout: d, EPOCHS: e} for e in (1.0, 2.0) for d in (0.0, 0.1)))
    said = dict(warnings(fitted(raw, from_results(raw))))
    assert said["Not compared."] == (
        "Arms are compared at the usual level of every setting: 12 runs at train.epochs 2 that "
        "differ in the arm alone are in no comparison of arms."
    )


def test_an_arm_at_learning_rates_of_its_own_is_named():
    dropout = "adapter.options.dropout"
    cells = [{dropout: d, "lr": 1e-3} for d in (0.0, 0.2)]
    raw = swept(*cells, *({dropout: 0.1, "lr": lr} for lr in (3e-3, 1e-2)))
    said = " ".join(fitted(raw, from_results(raw)).in_doubt)
    assert "lora dropout 0.1 r4 ran at rate 0.003, 0.01, never at 0.001 as other arms did" in said


def test_what_has_no_replicates_is_said_to():
    raw = swept({EPOCHS: 1.0}, {EPOCHS: 2.0}, seeds=1)
    study = fitted(raw, from_results(raw))
    assert not len(differences(study))
    assert any("train.epochs: some levels have no replicates" in t
               for _, t in warnings(study))  # fmt: skip


# --- names ---------------------------------------------------------------------------------------


def test_two_local_files_are_two_data_sets_named_by_their_path():
    key = "dataset.path"
    raw = crossed(small().assign(dataset="local"), {key: ("/x/one/a.jsonl", "/x/two/a.jsonl")})
    frame = from_results(raw)
    rows = study_rows(frame)
    assert set(rows["dataset"]) == {"one/a.jsonl", "two/a.jsonl"}
    assert set(stratum_names(rows)) == {"one/a.jsonl micro_a", "two/a.jsonl micro_a"}
    named = crossed(small(), {key: ("a.jsonl", "b.jsonl")})
    assert set(study_rows(from_results(named))["dataset"]) == {
        "micro_short a.jsonl", "micro_short b.jsonl",
    }  # fmt: skip


def test_the_shortest_endings_that_tell_paths_apart():
    assert shortest_endings(["/a/x.json", "/a/y.json"]) == {
        "/a/x.json": "x.json", "/a/y.json": "y.json",
    }  # fmt: skip
    assert shortest_endings(["/p/a/x", "/q/a/x"]) == {"/p/a/x": "p/a/x", "/q/a/x": "q/a/x"}
    assert shortest_endings(["only"]) == {"only": "only"}


def test_settings_are_called_by_their_last_word_where_that_says_enough():
    assert readable(["train.weight_decay", "regulariser.weight_decay", "adapter.options.dropout",
                     "rate", "scope"]) == {
        "train.weight_decay": "train weight decay",
        "regulariser.weight_decay": "regulariser weight decay",
        "adapter.options.dropout": "dropout", "rate": "learning rate", "scope": "scope",
    }  # fmt: skip


def test_names_of_runs_and_arms():
    runs = pd.DataFrame({
        "run": list("abcd"), "method": ["full", "lora", "lora", "lora"],
        "adapter": ["full", "lora dropout 0.1", "lora dropout 0.1", "lora dropout 0"],
        "rank": [4, 4, 8, 8], "plw": [0.0, 0.5, 1.0, 1.0], "masking": "none",
        "placement": ["all", "all", "attention", "all"],
        "train.epochs": [1.0, 1.0, 2.0, 2.0],
    })  # fmt: skip
    found = factors_of(runs)
    assert found.arm_names(runs).tolist() == [
        "full", "lora dropout 0.1 r4", "lora dropout 0.1 r8 attention", "lora dropout 0 r8",
    ]  # fmt: skip
    assert cell_names(runs).tolist() == [
        "0 full all epochs 1", "0.5 lora dropout 0.1 4 all epochs 1",
        "1 lora dropout 0.1 8 attention epochs 2", "1 lora dropout 0 8 all epochs 2",
    ]  # fmt: skip


def test_the_usual_level_is_that_of_most_runs_and_of_a_tie_the_default():
    runs = pd.DataFrame({
        "run": list("abcde"), "placement": ["mlp", "mlp", "all", "all", "attention"],
        "train.epochs": [2.0, 2.0, 2.0, 1.0, 1.0], "scope": ["batch", "example", "x", "y", "z"],
    })  # fmt: skip
    found = factors_of(runs)
    assert found.usual == {"scope": "batch", "placement": "all", "train.epochs": "2"}
    assert found.main(runs)["run"].tolist() == []
    assert factors_of(runs.drop(columns="scope")).main(runs)["run"].tolist() == ["c"]


def test_whole_numbers_are_in_the_order_of_their_size():
    runs = pd.DataFrame({"run": list("abc"), "train.batch_size": [16, 2, 4]})
    assert factors_of(runs)["train.batch_size"].levels == ("2", "4", "16")


def test_kinds_of_factors():
    runs = pd.DataFrame({
        "run": list("abc"), "rate": [1e-4, 1e-3, 1e-3], "train.epochs": [1.0, 2.0, 3.0],
        "train.batch_size": [1, 10, 100], "train.schedule": ["a", "b", "b"],
        "dataset.invert_prompt": [True, False, True],
    })  # fmt: skip
    assert {f.column: f.kind for f in factors_of(runs)} == {
        "rate": "log number", "train.epochs": "number", "train.batch_size": "log number",
        "train.schedule": "categories", "dataset.invert_prompt": "categories",
    }  # fmt: skip


def test_numbers_of_many_levels_are_numbers_in_the_model():
    tables = [crossed(small(), {"train.batch_size": (n, 2 * n)}) for n in (1, 4, 16)]
    tables = [t.assign(train_key=t["train_key"] + str(i)) for i, t in enumerate(tables)]
    formula = default_formula(from_results(pd.concat(tables))).formula
    assert "log10(`train.batch_size`)" in formula
    narrow = [t.assign(**{"train.epochs": t["train.batch_size"] / 100 + 1}) for t in tables]
    frame = from_results(pd.concat(narrow).drop(columns="train.batch_size"))
    assert " + `train.epochs` + " in default_formula(frame).formula


def test_a_number_over_decades_with_zero_among_its_levels_is_modelled_as_categories():
    key = "train.weight_decay"
    raw = swept(*({key: v} for v in (0.0, 1e-4, 1e-3, 1e-2, 1e-1)))
    model = default_formula(from_results(raw))
    assert f"C(`{key}`)" in model.formula
    assert f"{key} varies: an effect of its own." in model.reasons
    raw = swept(*({"train.eps": v} for v in (1e-10, 1e-9, 1e-8, 1e-7, 1e-6)))
    model = default_formula(from_results(raw))
    assert "train.eps varies: an effect of its own, a line over its logarithm." in model.reasons


def test_levels_that_agree_in_six_digits_have_names_of_their_own():
    assert level_text(1234567.0) != level_text(1234568.0)
    assert level_text(0.1 + 0.2) == "0.3"
    assert level_text(2.0) == "2"


@pytest.mark.parametrize(("fewer", "said"), [((), "4 seeds"), (("full",), "1 to 4 seeds")])
def test_seeds_are_counted_by_cell(fewer, said):
    raw = fake_results(1, seeds=4, plws=(0.0, 0.1), controls=False)
    raw = raw[~raw["adapter"].isin(fewer) | (raw["seed"] == 0)]
    study = fitted(raw, from_results(raw))
    (line,) = [item.text for item in trust(study) if item.tag == "seeds"]
    assert line == f"{said} per cell."
    assert not study.screening
    apart = raw[(raw["seed"] < 2) == (raw["adapter"] != "lora")]  # four seeds, two a cell
    assert fitted(apart, from_results(apart)).screening


def test_a_missing_setting_takes_the_usual_level():
    rows = pd.DataFrame({
        "run": list("abcd"), "adapter": ["full", "lora", "lora", "lora"],
        "adapter.options.dropout": [np.nan, 0.1, 0.1, 0.0],
    })  # fmt: skip
    assert with_reference(rows)["adapter.options.dropout"].tolist() == [0.1, 0.1, 0.1, 0.0]


def test_level_columns_of_a_table_without_settings_are_the_levels():
    assert set(level_columns(fake_results())) == (set(LEVELS) - {"study"}) & set(fake_results())


def test_a_factor_is_determined_where_groups_say_so():
    """Against pandas' groups: each level of one found with one level of the other; some missing."""
    rng, told = np.random.default_rng(0), 0
    for _ in range(200):
        one, other = (pd.Series(rng.integers(0, n, 6)).astype(str) for n in (4, 3))
        if rng.random() < 0.5:
            other = one.map(dict(zip("0123", rng.permutation(list("abca")), strict=True)))
        one, other = (x.where(rng.random(6) < 0.9) for x in (one, other))
        wanted = bool(other.groupby(one).nunique().max() == 1)
        assert _determines(*(pd.factorize(x)[0] for x in (one, other))) == wanted
        told += wanted
    assert 50 < told < 190


@pytest.mark.parametrize("levels", [[0.1, 0.1, 0.5], [1, 1.0, 2], ["b", "a", "b", "a"]])
def test_the_most_common_levels_are_those_of_a_count(levels):
    known = pd.Series(levels)
    texts = known.map(level_text, na_action=None).astype(str)
    most = texts.value_counts()
    assert most_common(known, levels) == [
        t for t in dict.fromkeys(map(level_text, levels)) if most[t] == most.max()
    ]


def test_runs_of_all_panels_at_once_are_those_of_each_panel():
    """Some runs lack tasks: each panel is adjusted by itself."""
    rows = study_rows(from_results(fake_results(plws=(0.0, 0.1, 1.0))))
    rng = np.random.default_rng(0)
    rows = rows[rng.random(len(rows)) < 0.9]
    found = list(task_panels(rows))
    assert len(found) > 1
    for panel in found:
        own = rows
        for name, level in panel.labels.items():
            own = own[own[name].astype(str) == level]
        alone = run_means(own)
        for name in ("run", "score", "tasks", "plw", "adapter"):
            assert panel.runs[name].tolist() == alone[name].tolist()
    assert (without_gaps(rows)["score"] != rows["score"]).any()
