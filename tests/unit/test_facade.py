"""`ablate.load`: a results folder or a table, opened for notebooks and scripts."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.stats import norm

import ablate
from analysis.errors import AnalysisError
from analysis.facade import LoadedStudy, LoadedTable
from analysis.mixed import fit_mixed
from analysis.regression.study import NoModel
from analysis.report import build, overview
from tests.fake_results import fake_results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("study")
    fake_results().to_parquet(place / "results.parquet")
    return place


@pytest.fixture(scope="module")
def study(folder):
    return ablate.load(folder)


@pytest.fixture(scope="module")
def reported(study, tmp_path_factory):
    """The report's folder: the other path to what the facade gives."""
    return study.report(tmp_path_factory.mktemp("report")).parent


def test_a_results_folder_is_a_study(study, folder):
    assert isinstance(study, LoadedStudy)
    pd.testing.assert_frame_equal(study.results, pd.read_parquet(folder / "results.parquet"))
    assert len(study.fits) == 8
    assert all(fit.formula.startswith("score ~") for fit in study.fits.values())
    with pytest.raises(AnalysisError, match="8 panels have a model each; take one of fits: 'micro"):
        _ = study.fit
    assert "full" in study.arms
    assert len(repr(study)) < 200
    one = study.results[~study.results["alias"].astype(bool) & (study.results["adapter"] != "none")]
    seeds = one.groupby(["masking", "plw", "adapter", "rank", "dataset", "sham"])["seed"].nunique()
    assert f" {seeds.median():g} seeds a cell, " in repr(study)
    assert study.reasons


def test_arms_answer_to_the_names_of_the_page_too(tmp_path):
    """With one rank the arms are called without it, and the page calls them with it."""
    raw = fake_results(plws=(0.0, 0.1), controls=False)
    kept = (raw["rank"] == raw["rank"].max()) | (raw["adapter"] == "none")
    kept &= raw["dataset"] == "micro"
    raw[kept].to_parquet(tmp_path / "results.parquet")
    loaded = ablate.load(tmp_path)
    assert ", 1 data set; " in repr(loaded)
    assert "lora" in loaded.arms
    named = f"lora r{raw['rank'].max():g}"
    pd.testing.assert_frame_equal(loaded.compare(named, "full"), loaded.compare("lora", "full"))


@pytest.mark.slow
def test_effects_are_those_of_the_reports_first_screen(study, reported):
    """Two paths: the facade, and the table that the report writes."""
    found = study.effects()
    written = pd.read_csv(reported / "tables" / "headlines.csv")
    assert len(found) == len(written) > 0
    for name in ("estimate", "low", "high", "mde"):
        np.testing.assert_allclose(found[name], written[name], rtol=1e-9)
    np.testing.assert_allclose(found["p_adjusted"], written["p"], rtol=1e-9)
    assert found["verdict"].tolist() == written["verdict"].tolist()
    assert "p" not in found  # nobody takes an adjusted p for that of the interval beside it
    clear = found["verdict"] == "distinguishable"
    assert found["because"][clear].str.fullmatch(r"p_adjusted \S+ is below 0.05").all()
    assert found["because"].str.len().gt(0).all()


@pytest.mark.slow
def test_sections_are_those_of_the_page(study, reported):
    """Two paths: `section`, and the files that the report writes."""
    page = (reported / "index.html").read_text(encoding="utf-8")
    made = {}
    elsewhere = {part.key for part in build.PARTS if part.section in build.OF_A_STUDY}
    for name in (n for n in study.sections if n not in elsewhere):
        if f'id="{name}"' in page:
            made[name] = study.section(name)
        else:
            with pytest.raises(AnalysisError, match=f"section={name}: .* has no runs for it"):
                study.section(name)
    assert {"plw", "adapters", "best", "controls", "heldout", "run", "shape"} <= set(made)
    plw = made["plw"]
    assert plw.figures
    assert set(plw.figures) == set(plw.captions)
    assert plw.title in page
    assert "tables: " in repr(plw)
    for one in made.values():
        for name, table in one.tables.items():
            written = pd.read_csv(reported / "tables" / f"{name}.csv")
            assert list(written.columns) == list(table.columns)
            for column in table.select_dtypes(float):
                np.testing.assert_allclose(table[column], written[column], rtol=1e-9)


def test_a_section_that_there_is_not_is_one_line(study):
    with pytest.raises(AnalysisError, match=r"section=adaptors: no such section\. Did you mean"):
        study.section("adaptors")
    with pytest.raises(AnalysisError, match=r"section=x: no such section\. Known: frozen, paper,"):
        study.section("x")


def test_a_comparison_is_the_analysis_of_variance_of_its_pairs(study):
    """Balanced pairs by condition and seed: the closed form of REML with a cell's effect.

    Where the pairs' differences vary more between conditions than within, a t test over the
    conditions' means, else one over all pairs (least squares).
    """
    first, second = "lora r8", "full"
    table = study.compare(first, second)
    rows = study.study.rows
    arm = rows["adapter"].astype(str) + np.where(
        rows["adapter"].astype(str) == "full", "", " r" + rows["rank"].astype(int).astype(str)
    )
    rows, kinds = rows.assign(arm=arm), set()
    for line in table.to_dict("records"):
        there = rows[(rows["side"] == line["tasks"]) & (rows["dataset"] == line["dataset"])]
        runs = there.assign(condition=there["masking"].astype(str) + there["plw"].astype(str))
        means = runs.groupby(["arm", "condition", "seed"], observed=True)["score"].mean()
        d_CS = (means[first] - means[second]).dropna().unstack().to_numpy()
        c, s = d_CS.shape
        between = s * d_CS.mean(axis=1).var(ddof=1)
        within = d_CS.var(axis=1, ddof=1).mean()
        cells = bool(between > within)
        kinds.add(cells)
        # Without a cell's effect the pairs are those of blocks: mean squares of both are pooled.
        df = c - 1 if cells else c * s - 1
        variance = between if cells else d_CS.var(ddof=1)
        half = stats.t.ppf(0.975, df) * np.sqrt(variance / (c * s))
        assert line["estimate"] == pytest.approx(d_CS.mean())
        assert line["low"] == pytest.approx(d_CS.mean() - half, rel=1e-4)
        assert line["high"] == pytest.approx(d_CS.mean() + half, rel=1e-4)
    assert kinds == {True, False}


def test_a_comparison_follows_the_rule_for_degrees_of_freedom(study, folder):
    normal = ablate.load(folder, df="normal").compare("lora r8", "full")
    own = study.compare("lora r8", "full")
    se = (normal["high"] - normal["estimate"]) / norm.ppf(0.975)
    np.testing.assert_allclose(normal["estimate"], own["estimate"])
    np.testing.assert_allclose(normal["p"], 2 * norm.sf(normal["estimate"].abs() / se))
    assert (own["p"] > normal["p"]).all()


def test_sides_may_be_levels_and_the_difference_turns_with_them(study):
    forth = study.compare({"masking": "none", "plw": 1.0}, {"masking": "none", "plw": 0.0})
    back = study.compare({"masking": "none", "plw": 0.0}, {"masking": "none", "plw": 1.0})
    np.testing.assert_allclose(forth["estimate"], -back["estimate"])
    assert (forth["p_adjusted"] >= forth["p"]).all()
    assert (forth["p_adjusted"] <= len(forth) * forth["p"]).all()  # Holm is within Bonferroni
    crosses = (forth["low"] < 0) & (forth["high"] > 0)  # the interval is that of `p`
    assert (crosses == (forth["p"] > 0.05)).all()


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("lora r80", "full", "arm=lora r80: not one of"),
        (
            "none",
            "instruction",
            "level of masking, not an arm; to compare levels of masking write {'masking': 'none'}",
        ),
        ({"adaptor": "lora"}, "full", "adaptor: no such factor. Did you mean 'adapter'?"),
        ({"adapter": "lora"}, {"adapter": "lora"}, "some runs belong to"),
    ],
)
def test_a_wrong_side_is_one_line(study, first, second, said):
    with pytest.raises(AnalysisError, match=r"^[^\n]*$") as caught:
        study.compare(first, second)
    assert said in str(caught.value)


def test_items_without_a_folder_of_cells_are_refused(study):
    with pytest.raises(AnalysisError, match="items: none beside"):
        _ = study.items


def test_any_other_table_is_fitted_as_its_report_fits_it(tmp_path):
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"lab": list("abc") * 20, "dose": np.tile([0.0, 1.0], 30)})
    table["score"] = 2.0 * table["dose"] + (table["lab"] == "b") + rng.normal(0, 0.3, 60) + 50
    table.to_csv(tmp_path / "t.csv", index=False)
    found = ablate.load(tmp_path / "t.csv", formula="score ~ lab + dose")
    assert type(found) is LoadedTable
    own = fit_mixed(table, "score ~ lab + dose")
    np.testing.assert_allclose(found.fit.fixef, own.fixef)
    dose = found.effects().set_index("label").filter(like="dose", axis=0)
    assert dose["estimate"].iloc[0] == pytest.approx(own.fixef["dose"])
    assert found.report().is_file()
    with pytest.raises(AnalysisError, match="frozen="):
        ablate.load(tmp_path / "t.csv", frozen="plan.json")


def test_loading_ablate_imports_no_analysis():
    import subprocess
    import sys

    code = "import sys, ablate; sys.exit(any(m.startswith('analysis') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("source", [None, 5, 2.5, ["a"], {"a": 1}, b"t.csv", "", pd.DataFrame()])
def test_a_source_of_a_wrong_type_is_one_line(source):
    with pytest.raises(AnalysisError, match=r"^table=[^\n]*must be the path of a file or folder$"):
        ablate.load(source)


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.json", b"{}"), ("t.csv", b"\xff\xfe\x00\x01"), ("t.csv", b""), ("t.csv", b"only,heads\n"),
     ("t.csv", b"Some words, and more.\nThen others"), ("t.parquet", b"PAR1 no"),
     ("t.tsv", b"a\tb\n1\t2\t3\t4\n1")],
)  # fmt: skip
def test_a_file_that_is_no_table_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AnalysisError, match=r"^[^\n]*$"):
        ablate.load(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"margin": "wide"}, "margin=wide: must be a positive number"),
     ({"margin": True}, "margin=True"), ({"margin": float("inf")}, "margin=inf"),
     ({"df": ["normal"]}, "df=['normal']: must be text"), ({"formula": 3}, "formula=3: must be"),
     ({"frozen": 5}, "frozen=5: must be the path"), ({"margins": 1.0}, "Did you mean 'margin'?")],
)  # fmt: skip
def test_an_option_of_a_wrong_type_is_one_line(folder, options, said):
    with pytest.raises(AnalysisError, match=r"^[^\n]*$") as caught:
        ablate.load(folder, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize("side", [None, 3, ["full"], {"full"}])
def test_a_side_of_a_wrong_type_is_one_line(study, side):
    with pytest.raises(AnalysisError, match=r"^second=[^\n]*must be an arm's name or levels"):
        study.compare("full", side)


@pytest.mark.parametrize(
    "asked", [lambda t: t.items, lambda t: t.arms, lambda t: t.compare("a", "b")]
)
def test_what_another_table_has_not_is_said(tmp_path, asked):
    table = pd.DataFrame({"lab": list("ab") * 10, "score": np.arange(20.0)})
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(AnalysisError, match=r"known of results of ablate alone, and t\.csv"):
        asked(ablate.load(tmp_path / "t.csv"))


@pytest.mark.parametrize("kept", [
    lambda t: t[t["task_type"] == "heldout"], lambda t: t.assign(value=np.nan),
    lambda t: t[t["adapter"] == "none"], lambda t: t[t["train_key"] == t["train_key"].iloc[-1]],
])  # fmt: skip
def test_results_without_a_model_are_loaded_all_the_same(tmp_path, kept):
    raw = kept(fake_results(controls=False))
    raw.to_parquet(tmp_path / "results.parquet")
    study = ablate.load(tmp_path)
    assert len(study.results) == len(raw)
    assert repr(study).startswith("<study")
    if "no model" in repr(study):
        for asked in (lambda: study.fit, study.effects, lambda: study.reasons):
            with pytest.raises(AnalysisError, match=r"^[^\n]*$"):
                asked()


def test_arms_are_compared_though_no_model_was_fitted(folder, study, monkeypatch):
    def none(*args, **kwargs):
        raise NoModel("too few")

    monkeypatch.setattr("analysis.report.build.fitted", none)
    bare = ablate.load(folder)
    with pytest.raises(NoModel, match="too few"):
        _ = bare.fit
    pd.testing.assert_frame_equal(bare.compare("lora r8", "full"), study.compare("lora r8", "full"))


# -- names of one run: the same run is never held against itself, and counts once ------------------


def test_ranks_are_compared_where_an_arm_without_a_rank_has_both_names(study):
    """Full fine-tuning ran once under both ranks: LoRA and MoRA alone tell the ranks apart."""
    table = study.compare({"rank": 4}, {"rank": 8})
    rows = study.study.rows
    for line in table.to_dict("records"):
        own = rows[(rows["side"] == line["tasks"]) & (rows["dataset"] == line["dataset"])]
        own = own[own["adapter"].astype(str) != "full"]
        means = own.groupby(own["rank"] == 4, observed=True)["score"].mean()
        assert line["estimate"] == pytest.approx(means[True] - means[False])
        assert line["runs_first"] + line["runs_second"] == own["run"].nunique()


def test_weights_are_compared_where_their_runs_carry_names_of_other_modes(study):
    """Masking instruction at PLW 0 and none at PLW 0 are one run; none at PLW 1 is another."""
    named = study.compare({"masking": "none", "plw": 1.0}, {"masking": "none", "plw": 0.0})
    free = study.compare({"plw": 1.0}, {"plw": 0})
    pd.testing.assert_frame_equal(named, free)
    with pytest.raises(AnalysisError, match="did not run under equal conditions"):
        study.compare({"masking": "none", "plw": 0}, {"masking": "instruction", "plw": 0})


@pytest.mark.parametrize("asked", [None, "null"])
def test_null_is_a_level(tmp_path, asked):
    raw = fake_results(plws=(0.0, 0.1), controls=False)
    raw = raw[raw["adapter"] != "none"]
    other = raw.assign(train_key=raw["train_key"] + "n", value=raw["value"] - 0.01)
    raw = pd.concat([raw.assign(**{"train.clip": "1.0"}), other.assign(**{"train.clip": "null"})])
    raw.to_parquet(tmp_path / "results.parquet", index=False)
    found = ablate.load(tmp_path).compare({"train.clip": 1}, {"train.clip": asked})
    np.testing.assert_allclose(found["estimate"], 1.0)


@pytest.mark.parametrize("by", ["model", "model.path"])
def test_base_models_are_compared_under_equal_conditions(tmp_path, by):
    """Twice the runs, the second base model 2 points better; a folder's name or a level's."""
    raw = fake_results(plws=(0.0, 0.1), controls=False)
    raw = raw[raw["adapter"] != "none"]
    raw["value"] *= 0.9
    names = ("a", "b") if by == "model" else ("/x/a", "/x/b")
    raw = pd.concat([
        raw.assign(model="local", train_key=raw["train_key"] + name, value=raw["value"] + n / 50)
        .assign(**{by: name}) for n, name in enumerate(names)
    ], ignore_index=True)  # fmt: skip
    raw.to_parquet(tmp_path / "results.parquet", index=False)
    assert overview.counts(raw)["base models"] == 2
    found = ablate.load(tmp_path).compare({by: names[1]}, {by: names[0]})
    assert "model" not in found
    assert len(found) == 2 * raw["dataset"].nunique()
    np.testing.assert_allclose(found["estimate"], 2.0)


@pytest.mark.parametrize(
    ("column", "levels"),
    [("adapter.options.dropout", (0.0, 0.1)), ("lr", (1e-3, 1e-2)), ("dataset.max_rows", (50, 99))],
)
def test_a_setting_that_a_level_carries_is_compared_within_that_level(tmp_path, column, levels):
    """LoRA at both levels, a point better at the second, where MoRA ran alone and says nothing."""
    raw = fake_results(plws=(0.0, 0.1), controls=False)
    raw = raw[raw["adapter"].isin(["lora", "mora"])]
    raw["value"] *= 0.8
    parts = [
        raw.assign(train_key=raw["train_key"] + str(n), value=raw["value"] + n / 100,
                   **{column: level}) for n, level in enumerate(levels)
    ]  # fmt: skip
    raw = pd.concat(parts, ignore_index=True)
    raw = raw[(raw["adapter"] == "lora") | (raw[column] == levels[1])]
    raw.to_parquet(tmp_path / "results.parquet", index=False)
    found = ablate.load(tmp_path).compare({column: levels[1]}, {column: levels[0]})
    np.testing.assert_allclose(found["estimate"], 1.0, atol=1e-9)
