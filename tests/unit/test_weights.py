"""The objective as two role tables, against the formulas of the papers and the alias examples."""

import itertools
from types import SimpleNamespace

import pytest

from ablate.config.schema import Loss, Masking
from ablate.errors import UserError
from ablate.objective import canonical, effective_plw, make_objective, supervised
from ablate.roles import NAMES, Role
from tests import toys

MODES = {
    "instruction": (0, 0, 0, 0, 0, 1),
    "none": ("plw", "plw", "plw", "plw", "plw", 1),
    "boilerplate": (0, 0, "plw", "plw", "plw", 1),
    "special": (0, "plw", "plw", "plw", "plw", 1),
}
ALPACA = {"boilerplate": 300, "instruction": 90, "input": 20, "completion": 400}
CHAT = {"special": 60, "instruction": 90, "completion": 400}
NORMALISERS = ("weight", "completion", "tokens", "nonzero", "examples")


def objective(mode, plw, *, c=1.0, normaliser="weight", scope="batch", permute=False):
    weights = {
        name: w if w == "plw" else float(w) for name, w in zip(NAMES, MODES[mode], strict=False)
    }
    masking = Masking(name=mode, weights=weights, permute=permute)
    return make_objective(masking, plw, c, Loss(normaliser=normaliser, scope=scope))


def same(a, b, counts):
    return canonical(a, toys.counted(counts)) == canonical(b, toys.counted(counts))


def ratio(objective, sums, counts, rows=10):
    """The objective's value from summed losses per role, straight from its definition."""
    top = sum(objective.num[Role[k.upper()]] * v for k, v in sums.items())
    bottom = sum(objective.den[Role[k.upper()]] * v for k, v in counts.items())
    return top / (rows if objective.per_example else bottom)


@pytest.mark.parametrize("w", [0.0, 0.01, 0.3, 1.0])
def test_normalisers_are_the_papers_formulas(w):
    sums = {"instruction": 250.0, "completion": 480.0}
    counts = {"instruction": 110, "completion": 400}
    lc, lp, nc, np_ = 480.0, 250.0, 400, 110
    expected = {
        "weight": (lc + w * lp) / (nc + w * np_),
        "completion": (lc + w * lp) / nc,
        "tokens": (lc + w * lp) / (nc + np_),
        "nonzero": (lc + w * lp) / (nc + (np_ if w > 0 else 0)),
        "examples": (lc + w * lp) / 10,
    }
    for name, value in expected.items():
        found = ratio(objective("none", w, normaliser=name), sums, counts)
        assert found == pytest.approx(value, rel=1e-14), name


def test_instruction_is_one_run_at_any_plw():
    assert same(objective("instruction", 0.0), objective("instruction", 0.7), ALPACA)


@pytest.mark.parametrize("mode", ["none", "boilerplate", "special"])
@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_plw_zero_is_instruction(mode, normaliser):
    one, other = (
        objective(mode, 0.0, normaliser=normaliser),
        objective("instruction", 0.5, normaliser=normaliser),
    )
    assert same(one, other, ALPACA)


@pytest.mark.parametrize("plw", [0.01, 1.0])
def test_aliases_depend_on_the_roles_that_occur(plw):
    assert same(objective("special", plw), objective("none", plw), ALPACA)  # no role tags
    assert not same(objective("special", plw), objective("none", plw), CHAT)
    assert same(objective("boilerplate", plw), objective("special", plw), CHAT)  # no template text
    assert not same(objective("boilerplate", plw), objective("special", plw), ALPACA)


def test_text_is_one_run_at_any_masking_plw_and_normaliser_of_tokens():
    text = {"text": 1000}
    goals = [
        objective(mode, plw, normaliser=n)
        for mode in MODES
        for plw in (0.0, 0.5)
        for n in ("weight", "completion", "tokens", "nonzero")
    ]
    assert len({str(canonical(g, toys.counted(text))) for g in goals}) == 1


def test_only_the_ratio_matters_under_weight():
    assert same(objective("none", 0.1, c=0.2), objective("none", 0.5, c=1.0), ALPACA)
    for normaliser in ("completion", "tokens", "nonzero", "examples"):
        one = objective("none", 0.1, c=0.2, normaliser=normaliser)
        assert not same(one, objective("none", 0.5, c=1.0, normaliser=normaliser), ALPACA), (
            normaliser
        )


def test_completion_weight_matters_under_tokens_at_plw_zero():
    one, other = (objective("none", 0.0, c=c, normaliser="tokens") for c in (0.2, 1.0))
    assert not same(one, other, ALPACA)
    assert same(objective("none", 0.0, c=0.2), objective("none", 0.0, c=1.0), ALPACA)


def test_wit_grid_is_21_runs_under_weight():
    """WIT (arXiv 2507.07817): prompt and response weight in {0, .2, .., 1}, 35 cells."""
    levels = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    cells = [(p, c) for p, c in itertools.product(levels, levels) if p or c]
    assert len(cells) == 35
    runs = {str(canonical(objective("none", p, c=c), toys.counted(ALPACA))) for p, c in cells}
    # Reduced fractions a/b with a, b <= 5 are 1 + 2 (phi(2) + .. + phi(5)) = 19; 0 and 1/0 besides.
    assert len(runs) == 21


def test_a_permutation_of_equal_weights_is_none():
    assert same(objective("none", 1.0, permute=True), objective("none", 1.0), ALPACA)
    assert not same(objective("none", 0.1, permute=True), objective("none", 0.1), ALPACA)


def test_scope_is_part_of_the_objective():
    assert not same(objective("none", 0.1, scope="example"), objective("none", 0.1), ALPACA)


def test_effective_plw_does_not_depend_on_how_python_sums():
    """0.1 times 1, 3 and 10 tokens: the sum up to Python 3.11 gives 0.09999999999999999."""
    counts = {"boilerplate": 1, "instruction": 3, "input": 10, "completion": 5}
    assert effective_plw(objective("none", 0.1), counts) == 0.1


def test_effective_plw_is_the_mean_prompt_weight():
    assert effective_plw(objective("instruction", 0.9), ALPACA) == 0
    assert effective_plw(objective("none", 0.3), ALPACA) == pytest.approx(0.3)
    assert effective_plw(objective("none", 0.1, c=0.2), ALPACA) == pytest.approx(0.5)
    share = (90 + 20) / (300 + 90 + 20)
    assert effective_plw(objective("boilerplate", 0.5), ALPACA) == pytest.approx(0.5 * share)
    assert effective_plw(objective("none", 0.1, c=0.0), ALPACA) is None


def test_nothing_to_train_is_refused():
    with pytest.raises(UserError, match="nothing is left to train"):
        objective("instruction", 1.0, c=0.0)
    objective("none", 1.0, c=0.0)  # the prompt alone can be trained


def mode(**settings):
    weights = {name: float(w) for name, w in zip(NAMES, (0, 0, 0, 0, 0, 1), strict=False)}
    more = settings.pop("weights", {})
    return make_objective(Masking(name="m", weights=weights | more, **settings), 0.0, 1.0, Loss())


def test_details_and_turns_count_where_they_occur_and_differ():
    plain = mode()
    one = toys.counted(ALPACA)
    talk = SimpleNamespace(
        counts=ALPACA, details={"stop": 3, "thinking": 5}, answers=2, kinds_hash="k"
    )
    for other in (mode(turns="last"), mode(weights={"thinking": 0.0}), mode(weights={"stop": 0.0})):
        assert canonical(other, one) == canonical(plain, one)  # nothing to tell apart: an alias
        assert canonical(other, talk) != canonical(plain, talk)
        assert canonical(other, talk)["kinds"] == "k"
    same = mode(weights={"thinking": 1.0, "tool_call": 0.0})  # as its role; does not occur
    assert canonical(same, talk) == canonical(plain, talk)
    assert supervised(plain, talk) == ALPACA["completion"]
    assert supervised(mode(weights={"thinking": 0.0}), talk) == ALPACA["completion"] - 5
