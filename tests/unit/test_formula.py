"""Formulas: what they are split into, the matrices they give, and every way to get one wrong."""

import numpy as np
import pandas as pd
import pytest

from analysis.engine.formula import Bar, design, matrix_for, parse
from analysis.errors import AnalysisError
from analysis.mixed import fit_mixed

COLUMNS = ("score", "wp", "task", "run", "dataset", "learning rate", "I")


def table(n=24):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "score": rng.normal(size=n),
            "wp": np.tile([0.0, 0.25, 0.5, 1.0], n // 4),
            "task": np.repeat(["a", "b", "c"], n // 3),
            "run": [f"r{i % 6}" for i in range(n)],
            "dataset": np.tile(["x", "y"], n // 2),
            "learning rate": rng.uniform(1, 2, n),
            "I": 1.0,
        }
    )


@pytest.mark.parametrize(
    ("formula", "fixed", "bars"),
    [
        ("score ~ wp", "wp", []),
        ("score ~ 1", "1", []),
        ("score~wp+(1|task)", "wp", [Bar("1", ("task",), True)]),
        ("score ~ (1 | task)", "1", [Bar("1", ("task",), True)]),
        ("score ~ (1 | task) + wp", "wp", [Bar("1", ("task",), True)]),
        ("score ~ 0 + wp + (0 + wp | run)", "0 + wp", [Bar("0 + wp", ("run",), True)]),
        ("score ~ wp - 1 + (wp || task)", "wp - 1", [Bar("wp", ("task",), False)]),
        ("score ~ -1 + wp", "- 1 + wp", []),
        ("score ~ (wp + task)^2", "(wp + task) ** 2", []),
        ("score ~ poly(wp, 2) * dataset", "poly(wp, 2) * dataset", []),
        ("score ~ I(wp^2):task", "I(wp ** 2) : task", []),
        ("score ~ `learning rate` + I", "`learning rate` + I", []),
        (
            "score ~ 1 + (1 | dataset/run)",
            "1",
            [Bar("1", ("dataset",), True), Bar("1", ("dataset", "run"), True)],
        ),
        ("score ~ (1 | task:run)", "1", [Bar("1", ("task", "run"), True)]),
        (
            "score ~ wp + (1 | task) + (1 + wp | run) + dataset",
            "wp + dataset",
            [Bar("1", ("task",), True), Bar("1 + wp", ("run",), True)],
        ),
    ],
)
def test_a_formula_is_split_into_its_parts(formula, fixed, bars):
    parsed = parse(formula, COLUMNS)
    assert parsed.response == "score"
    assert parsed.fixed == fixed
    assert list(parsed.bars) == bars


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("", "must have one ~"),
        ("score wp", "must have one ~"),
        ("score ~ wp ~ task", "must have one ~"),
        ("score ~", "nothing stands on one side"),
        ("~ wp", "nothing stands on one side"),
        ("score ~ wpp", "no column 'wpp'.*Did you mean 'wp'"),
        ("scor ~ wp", "no column 'scor'.*Did you mean 'score'"),
        ("score ~ (1 | tsk)", "no column 'tsk'.*Did you mean 'task'"),
        ("score ~ ply(wp, 2)", "no function 'ply'.*Did you mean 'poly'"),
        ("score ~ wp + 1 | task", "write a random term in brackets"),
        ("score ~ wp * (1 | task)", "write a random term in brackets"),
        ("score ~ wp - (1 | task)", "write a random term in brackets"),
        ("score ~ ((1 | task))", "is no random term"),
        ("score ~ (1 | task | run)", "is no random term"),
        ("score ~ ( | task)", "is no random term"),
        ("score ~ (1 | )", "is no random term"),
        ("score ~ (1 | task + run)", "is no random term"),
        ("score ~ (1 | 2)", "is no random term"),
        ("score ~ (1 | task", "a bracket is not closed"),
        ("score ~ wp)", "a bracket closes that was never opened"),
        ("(1 | task) ~ wp", "belongs to the right"),
        ("score ~ __import__('os')", "no function '__import__'|is not allowed"),
        ("score ~ wp.mean()", "'.' is not allowed"),
        ("score ~ wp[0]", r"'\[' is not allowed"),
        ("score ~ {wp}", "'{' is not allowed"),
        ("score ~ wp; task", "';' is not allowed"),
        ("score ~ 'wp'", '"\'" is not allowed'),
        ("score ~ exec(wp)", "no function 'exec'"),
        ("score ~ I(lambda)", "no column 'lambda'"),
        ("score ~ True", "no column 'True'|cannot be computed"),
    ],
)
def test_a_wrong_formula_is_one_clear_line(formula, message):
    with pytest.raises(AnalysisError, match=message) as caught:
        design(parse(formula, COLUMNS), table())
    assert "\n" not in str(caught.value)


def test_matrices_of_a_formula():
    found = design(parse("score ~ wp + I(wp^2) + task + (1 + wp | run)", COLUMNS), table())
    data = table()
    assert found.names == ("Intercept", "wp", "I(wp ** 2)", "task[T.b]", "task[T.c]")
    np.testing.assert_allclose(found.X_NB[:, 2], data["wp"] ** 2)
    np.testing.assert_allclose(found.X_NB[:, 4], data["task"] == "c")
    (factor,) = found.factors
    assert factor.group == "run"
    assert factor.names == ("Intercept", "wp")
    assert factor.levels == tuple(f"r{i}" for i in range(6))
    np.testing.assert_array_equal(factor.index_N, np.arange(24) % 6)
    np.testing.assert_allclose(factor.columns_NP[:, 1], data["wp"])
    np.testing.assert_array_equal(factor.free_PP, [[True, False], [True, True]])


def test_poly_is_orthogonal_and_of_the_right_degree():
    found = design(parse("score ~ poly(wp, 2)", COLUMNS), table())
    np.testing.assert_allclose(found.X_NB[:, 1:].T @ found.X_NB[:, 1:], np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.X_NB[:, 1:].sum(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("bars", "free"),
    [
        ("(1 + wp || run)", [[1, 0], [0, 1]]),
        ("(1 | run) + (0 + wp | run)", [[1, 0], [0, 1]]),
        ("(1 + wp | run)", [[1, 0], [1, 1]]),
        ("(1 + wp + dataset || run)", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("(1 + wp | run) + (0 + I | run)", [[1, 0, 0], [1, 1, 0], [0, 0, 1]]),
    ],
)
def test_bars_of_one_group_share_its_factor(bars, free):
    found = design(parse(f"score ~ 1 + {bars}", COLUMNS), table())
    assert [f.group for f in found.factors] == ["run"]
    np.testing.assert_array_equal(found.factors[0].free_PP, np.array(free, dtype=bool))


def test_a_pair_of_columns_is_a_group():
    found = design(parse("score ~ 1 + (1 | task:dataset)", COLUMNS), table())
    (factor,) = found.factors
    assert factor.levels == ("a:x", "a:y", "b:x", "b:y", "c:x", "c:y")
    data = table()
    expected = data["task"] + ":" + data["dataset"]
    assert [factor.levels[i] for i in factor.index_N] == list(expected)


def test_the_same_term_twice_is_an_error():
    with pytest.raises(AnalysisError, match="Intercept varies over run twice"):
        design(parse("score ~ 1 + (1 | run) + (1 + wp | run)", COLUMNS), table())


def test_rows_with_missing_values_are_dropped_and_counted():
    data = table()
    data.loc[[1, 5], "wp"] = np.nan
    data.loc[7, "run"] = None
    data.loc[9, "learning rate"] = np.nan  # not in the formula: no reason to drop the row
    found = design(parse("score ~ wp + (1 | run)", COLUMNS), data)
    assert found.dropped == 3
    assert list(found.rows) == [i for i in range(24) if i not in (1, 5, 7)]
    with pytest.raises(AnalysisError, match="no row has all of"):
        design(parse("score ~ wp", COLUMNS), data.assign(wp=np.nan))


def test_values_that_are_not_finite_are_named():
    with pytest.raises(AnalysisError, match=r"log\(wp\) is not finite"):
        design(parse("score ~ log(wp)", COLUMNS), table())
    with pytest.raises(AnalysisError, match="score is not finite"):
        design(parse("score ~ wp", COLUMNS), table().assign(score=np.inf))


@pytest.mark.parametrize("name", ["1", "0", "-1", ".", "~", "|", "Intercept", "my.arm", "2.5"])
@pytest.mark.parametrize("numbers", [True, False])
def test_a_name_that_formulaic_would_read_otherwise_is_a_column(name, numbers):
    rng = np.random.default_rng(0)
    x = np.resize([1.0, 2.0, 4.0] if numbers else list("abc"), 60)
    plain = pd.DataFrame({
        "x": x, "z": rng.normal(size=60), "g": np.repeat(list("abcdef"), 10),
        "y": rng.normal(size=60),
    })  # fmt: skip
    odd = plain.rename(columns={"x": name})
    for right, grouped in (("x * z", False), ("x", True), ("z + x:z", False)):
        bar = " + (1 + z | g)" if grouped else ""
        own = right.replace("x", f"`{name}`")
        a = fit_mixed(plain, f"y ~ {right}{bar}")
        b = fit_mixed(odd, f"y ~ {own}{bar}")
        np.testing.assert_allclose(b.fixef.to_numpy(), a.fixef.to_numpy(), rtol=1e-6)
        assert set(b.design.needed) == {name if n == "x" else n for n in a.design.needed}
    groups = fit_mixed(plain.rename(columns={"g": name}), f"y ~ z + (1 | `{name}`)")
    same = fit_mixed(plain, "y ~ z + (1 | g)")
    np.testing.assert_allclose(groups.fixef, same.fixef, rtol=1e-6)


def test_a_column_that_is_called_as_a_levels_coefficient_keeps_its_own():
    table = pd.DataFrame({"arm": np.resize(list("ab"), 40), "x": np.resize([1.0, 2.0, 3.0], 40)})
    table["y"] = np.random.default_rng(0).normal(size=40)
    plain = fit_mixed(table, "y ~ arm + x")
    odd = fit_mixed(table.rename(columns={"x": "arm[T.b]"}), "y ~ arm + `arm[T.b]`")
    np.testing.assert_allclose(odd.fixef.to_numpy(), plain.fixef.to_numpy())
    assert odd.fixef.index.is_unique


@pytest.mark.parametrize(
    "formula",
    ["log(y) ~ x", "sqrt(y) ~ x", "y ~ log(x)", "y ~ scale(x - x)", "y ~ z + offset(log(x))",
     "y ~ (1 + log(x) | g)", "y ~ huge"],
)  # fmt: skip
def test_what_cannot_be_computed_in_some_rows_is_one_line(formula):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(40, 3)), columns=["x", "y", "z"])
    table = table.assign(g=np.resize(list("abcd"), 40), huge=1e300)
    with pytest.raises(AnalysisError, match=r"not finite in every row|powers cannot"):
        fit_mixed(table, formula)


def test_a_response_may_be_transformed():
    data = table().assign(score=np.linspace(0.1, 0.9, 24))
    found = design(parse("logit(score) ~ wp", COLUMNS), data)
    np.testing.assert_allclose(found.y_N, np.log(data["score"] / (1 - data["score"])))


def test_levels_that_do_not_occur_give_no_column():
    data = table().assign(task=lambda d: d["task"].astype("category"))
    found = design(parse("score ~ task", COLUMNS), data[data["task"] != "a"])
    assert found.names == ("Intercept", "task[T.c]")


def test_other_rows_are_coded_as_the_fitted_ones():
    found = design(parse("score ~ poly(wp, 2) + task", COLUMNS), table())
    some = table().iloc[[3, 20]].assign(score=np.nan)
    np.testing.assert_allclose(matrix_for(found, some), found.X_NB[[3, 20]], atol=1e-12)
    for change, message in [
        ({"task": "never seen"}, "these rows: .*never seen"),
        ({"wp": np.nan}, "rows with missing values"),
    ]:
        with pytest.raises(AnalysisError, match=message):
            matrix_for(found, some.assign(**change))
    with pytest.raises(AnalysisError, match="no column task"):
        matrix_for(found, some.drop(columns="task"))


def test_a_column_does_not_hide_a_function():
    found = design(parse("score ~ I(wp^2)", COLUMNS), table())
    np.testing.assert_allclose(matrix_for(found, table()), found.X_NB)


def test_a_formula_cannot_reach_python(tmp_path):
    # Every name that formulaic would evaluate is a column, a keyword or one of FUNCTIONS.
    target = tmp_path / "written"
    attempts = [
        f"score ~ I(open('{target}', 'w'))",
        "score ~ I(np)",
        "score ~ Q(wp)",
        "score ~ I((1).__class__)",
        "score ~ eval(wp)",
    ]
    for attempt in attempts:
        with pytest.raises(AnalysisError):
            design(parse(attempt, COLUMNS), table())
    assert not target.exists()


def test_a_matrix_that_is_asked_for_again_is_that_of_the_table_as_it_is_now():
    frame = pd.DataFrame({"y": [1.0, 2.0, 4.0], "x": [0.0, 1.0, 2.0], "g": ["a", "b", "a"]})
    parsed = parse("y ~ x + g", frame.columns)
    first = design(parsed, frame)
    again = design(parsed, frame.assign(other=1.0))
    np.testing.assert_array_equal(first.X_NB, again.X_NB)
    assert not np.shares_memory(first.X_NB, again.X_NB)
    frame.loc[0, "x"] = 5.0  # in place
    assert design(parsed, frame).X_NB[0].tolist() == [1.0, 5.0, 0.0]
    assert design(parsed, frame.iloc[::-1]).X_NB[-1].tolist() == [1.0, 5.0, 0.0]
    assert first.X_NB[0].tolist() == [1.0, 0.0, 0.0]
