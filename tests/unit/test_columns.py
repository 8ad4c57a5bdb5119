"""Columns as they are read: words that mean nothing among numbers are levels among names."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from analysis.errors import AnalysisError
from analysis.mixed import fit_mixed
from analysis.report import style
from analysis.table.columns import plain_types
from analysis.table.frame import from_results, from_table, load, read
from tests.fake_results import fake_results


@pytest.mark.parametrize("word", ["None", "NA", "null", "N/A", "nan"])
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_level_called_none_is_a_level(tmp_path, word, ending):
    separator = {"csv": ",", "tsv": "\t"}[ending]
    lines = [["adapter", "task", "size", "score"]]
    for n in range(20):
        for adapter, score in ((word, 0.0), ("lora", 1.0)):
            lines.append([adapter, f"t{n % 4}", "" if n == 3 else "2", str(score + n / 100)])
    path = tmp_path / f"table.{ending}"
    path.write_text("\n".join(separator.join(line) for line in lines) + "\n")
    frame = load(path)
    assert frame["adapter"].value_counts().to_dict() == {word: 20, "lora": 20}
    assert frame["size"].isna().sum() == 2
    fit = fit_mixed(frame, "score ~ adapter + (1 | task)")
    assert fit.n == 40
    effect = next(v for n, v in fit.fixef.items() if n.startswith("adapter"))
    assert abs(effect) == pytest.approx(1.0)


def test_such_words_are_missing_among_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("score,size,flag,empty\n1,2,True,\nNA,None,,\n3,null,False,\n")
    table = read(path)
    assert table["score"].isna().tolist() == [False, True, False]
    assert table["size"].isna().tolist() == [False, True, True]
    assert table["flag"].tolist()[::2] == [True, False]
    assert table["empty"].isna().all()


def test_a_setting_that_is_switched_off_is_a_level_of_a_results_table(tmp_path):
    table = fake_results(controls=False)
    clip = np.where(table["seed"] == 0, "null", "1.0")
    steps = np.where(table["adapter"] == "full", "", "7")
    table.assign(**{"train.clip": clip, "adapter.options.t": steps}).to_csv(
        tmp_path / "results.csv", index=False
    )
    found = read(tmp_path / "results.csv")
    assert set(found["train.clip"]) == {"null", "1.0"}
    assert pd.api.types.is_numeric_dtype(found["adapter.options.t"])
    assert set(from_results(found)["train.clip"]) == {"null", "1.0"}


STRINGS = ["lora", "full", None, "lora"]


@pytest.mark.parametrize(
    "column",
    [
        pd.array(STRINGS, dtype="string"),
        pd.array(STRINGS, dtype="string[python]"),
        pd.Series(STRINGS, dtype=pd.ArrowDtype(pa.string())),
        pd.Series(pd.array(STRINGS, dtype="string")).astype("category"),
    ],
    ids=["string", "python", "arrow", "category"],
)
def test_nullable_text_is_plain_text(column):
    table = pd.DataFrame({"adapter": column, "score": [1.0, 2.0, 3.0, 4.0]})
    found = plain_types(table)["adapter"]
    plain = pd.Series(STRINGS, dtype="str", name="adapter")
    assert found.isna().tolist() == plain.isna().tolist()
    pd.testing.assert_series_equal(found.astype("str"), plain)
    frame = from_table(table.dropna(), "score")
    assert fit_mixed(frame, "score ~ adapter").fixef.iloc[1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (pd.array([1, 2, None], dtype="Int64"), "float64"),
        (pd.array([1, 2, 3], dtype="Int64"), "int64"),
        (pd.array([1.5, 2.5, None], dtype="Float64"), "float64"),
        (pd.array([True, False, True], dtype="boolean"), "bool"),
        (pd.array([True, None, True], dtype="boolean"), "object"),
        (pd.Series([1.0, None, 2.0], dtype=pd.ArrowDtype(pa.float32())), "float64"),
        (["a", "b", "c"], "str"),
    ],
)
def test_nullable_numbers_are_plain_numbers(column, dtype):
    table = pd.DataFrame({"x": column})
    found = plain_types(table)["x"]
    assert found.dtype == dtype
    assert found.isna().tolist() == table["x"].isna().tolist()
    known = found.notna()
    assert found[known].tolist() == table["x"][known].tolist()


def test_a_parquet_of_nullable_text_fits_as_plain_text(tmp_path):
    rng = np.random.default_rng(0)
    tasks = np.repeat(["a", "b", "c", "d"], 15)
    adapters = np.tile(["lora", "dora", "full"], 20)
    table = pd.DataFrame({"adapter": adapters, "task": tasks, "score": rng.normal(size=60)})
    nullable = table.astype({"adapter": "string", "task": "string"})
    nullable.to_parquet(tmp_path / "t.parquet", index=False)
    fits = [fit_mixed(t, "score ~ adapter + (1 | task)")
            for t in (from_table(table, "score"), load(tmp_path / "t.parquet"),
                      from_table(nullable, "score"))]  # fmt: skip
    for other in fits[1:]:
        np.testing.assert_allclose(other.fixef, fits[0].fixef)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("point", [".", ","])
def test_what_other_programs_write_for_commas_and_points(tmp_path, separator, point):
    """Spreadsheets of half of Europe write `;` between columns and a comma in numbers."""
    told = f"arm{separator}score\nx{separator}1{point}5\ny{separator}-0{point}25\n"
    path = tmp_path / "t.csv"
    path.write_text(told if separator != point else told.replace("1,5", '"1.5"').replace(
        "-0,25", "-0.25"
    ))  # fmt: skip
    table = read(path)
    assert list(table) == ["arm", "score"]
    assert table["score"].tolist() == [1.5, -0.25]


@pytest.mark.parametrize("name", ["ar\x07m", "arm\x7f", "a\x85rm"])
def test_a_column_with_a_control_character_in_its_name_is_refused(tmp_path, name):
    with pytest.raises(AnalysisError, match="has a control character in its name"):
        plain_types(pd.DataFrame({name: ["x"], "score": [1.0]}))


def test_characters_that_no_font_has_are_drawn_without_a_word(tmp_path, recwarn):
    figure = Figure()
    figure.text(0.5, 0.5, "\x07 \ue000")
    paths = style.save(figure, tmp_path / "at_0.1")  # a name with a weight in it
    assert [path.name for path in paths] == ["at_0.1.svg", "at_0.1.png"]
    assert all(path.stat().st_size for path in paths)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
