"""Token rules against their sources' formulas in float64, and every path of training alike."""

import functools
import itertools
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ablate.config.schema import TOKEN_RULES, Loss
from ablate.data.batches import micro_batches
from ablate.errors import UserError
from ablate.experiment.lanes import groups
from ablate.objective import Objective, TokenRule, canonical, token_rule_of
from ablate.roles import Role
from ablate.training import head_terms, predict
from ablate.training.loss import TokenLoss, TokenLossModel
from ablate.training.token_rules import Ruling, value_and_gate
from ablate.training.weighed import Weighed, weigh
from tests import reference, toys
from tests.unit import test_lanes as lanes
from tests.unit.test_loss import EXACT, ROWS, gradient, llama, objective_with, step

RULES = tuple(rule for rule in TOKEN_RULES if rule != "none")
WEIGHTS = {role: 0.25 for role in Role} | {Role.COMPLETION: 1.0}  # masking none at PLW 0.25


def loss_of(rule: str, exponent: float | None = None, **changes: Any) -> dict[str, Any]:
    return {"token_rule": rule, "token_rule_exponent": exponent, **changes}


@functools.cache
def naive(rule: str, exponent: float, scope: str = "all", divided: str = "weight") -> Any:
    rows = [reference.ruled_losses(llama(), row, rule, exponent, scope=scope) for row in ROWS]
    sums = [
        reference.example_sums(losses, roles, WEIGHTS, divided)
        for losses, (_, roles) in zip(rows, ROWS, strict=True)
    ]
    return reference.step_loss([sums], "batch")


def works(objective: Objective, rows: Any = ROWS, **execution: Any) -> list[Weighed]:
    parts = micro_batches(
        toys.tokenised(rows),
        np.arange(len(rows)),
        objective=objective,
        execution=toys.execution(**execution),
        permute_generator=np.random.default_rng(5),
    )
    return [weigh(part, objective) for part in parts]


# --- the rules


@pytest.mark.parametrize(("scope", "divided"), [("all", "weight"), ("completion", "completion")])
@pytest.mark.parametrize("exponent", [0.5, None])
@pytest.mark.parametrize("rule", RULES)
def test_loss_and_gradient_are_those_of_the_source(
    rule: str, exponent: float | None, scope: str, divided: str
) -> None:
    """With the divisor that the loss has without the rule, in two micro-batches."""
    changes = loss_of(rule, exponent, token_rule_scope=scope, normaliser=divided)
    loss, grad = step(llama(), objective_with(**changes), micro_batch_size=4)
    expected = naive(rule, TOKEN_RULES[rule] if exponent is None else exponent, scope, divided)
    torch.testing.assert_close(loss, expected.detach(), **EXACT)
    torch.testing.assert_close(grad, gradient(expected, llama()), rtol=1e-10, atol=1e-12)


def test_the_gradient_of_dft_is_that_of_the_cross_entropy_times_the_probability() -> None:
    """The closed form p (softmax - target) = -grad p, with half of the tokens left alone."""
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, generator=draws, dtype=torch.float64).mul_(3).requires_grad_()
    targets, acts = torch.arange(6), torch.arange(6) % 2 == 0
    term = head_terms.CrossEntropy(targets, ruling=Ruling(TokenRule("dft", 1.0), acts))
    found = term.tile(logits.detach().clone(), slice(None), torch.ones(6, dtype=torch.float64))
    p = logits.softmax(-1)[targets, targets]
    (expected,) = torch.autograd.grad(torch.where(acts, -p, -p.log()).sum(), logits)
    torch.testing.assert_close(found.gradient_CV, expected, **EXACT)
    torch.testing.assert_close(found.values_C, torch.where(acts, -p * p.log(), -p.log()).detach())


@pytest.mark.parametrize("exponent", [0.3, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("rule", RULES)
def test_values_and_gates_are_finite_from_certain_to_impossible(rule: str, exponent: float) -> None:
    """At p = 1, p = exp(-200) and between, in fp32 as in fp64."""
    nats = torch.tensor([0.0, 1e-12, 1e-4, 0.1, 1.0, 20.0, 200.0], dtype=torch.float64)
    logits = torch.linspace(-400, 0, 7 * 30, dtype=torch.float64).view(7, 30)
    logits[0, 1:] = -torch.inf
    exact = value_and_gate(TokenRule(rule, exponent), nats, logits)
    found = value_and_gate(TokenRule(rule, exponent), nats.float(), logits.float())
    for one, other in zip(found, exact, strict=True):
        assert one.isfinite().all()
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-30)
        assert (one >= 0).all()


def test_the_entropy_of_eaft_is_that_of_twenty_tokens_over_its_largest() -> None:
    nats, uniform = torch.ones(2), torch.zeros(2, 50)
    uniform[1, :30] = 60.0  # of thirty alike, twenty are taken
    torch.testing.assert_close(value_and_gate(TokenRule("eaft", 1.0), nats, uniform)[1], nats)
    few = torch.full((1, 50), -torch.inf)
    few[0, :2] = 0
    gate = value_and_gate(TokenRule("eaft", 1.0), nats[:1], few)[1]
    assert float(gate) == pytest.approx(np.log(2) / np.log(20), rel=1e-6)


# --- the paths


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of five rows."""
    monkeypatch.setattr("ablate.training.head.TILE", {"cpu": 5 * toys.VOCAB})
    monkeypatch.setattr("ablate.training.head.FEWEST_ROWS", 1)
    before = predict.TILED_FROM
    yield
    predict.TILED_FROM = before


def measured(model: Any, work: Weighed, objective: Objective, *, tiled: bool) -> list[Tensor]:
    predict.TILED_FROM = 0 if tiled else 10**9
    loss: TokenLoss = TokenLossModel(model, objective)(work, with_grad_norm=True)
    return [loss.sums_S, *torch.autograd.grad(loss.total / 3, list(model.parameters()))]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("scope", ["all", "completion"])
@pytest.mark.parametrize("rule", RULES)
def test_tiles_are_all_logits(rule: str, scope: str, layout: str) -> None:
    """Sum, losses and gradient norms by role, and gradients; padded as packed."""
    objective = objective_with(**loss_of(rule, token_rule_scope=scope))
    (padded,), (work,) = works(objective), works(objective, layout=layout)
    exact = measured(llama(), padded, objective, tiled=False)
    torch.testing.assert_close(measured(llama(), work, objective, tiled=True), exact, **EXACT)


def in_place(
    logits_CV: Tensor,
    targets_C: Tensor,
    factors_C: Tensor | None,
    *,
    label_smoothing: float = 0.0,
    norms: bool = False,
) -> tuple[Tensor, Tensor]:
    """What the kernel promises, without Triton: the gradient in the place of the logits."""
    losses_C = F.cross_entropy(logits_CV, targets_C, reduction="none")
    gradient_CV = logits_CV.softmax(-1) - F.one_hot(targets_C, logits_CV.shape[1])
    if factors_C is not None:
        logits_CV.copy_(gradient_CV * factors_C[:, None])
    return losses_C, gradient_CV.norm(dim=-1) if norms else torch.zeros_like(losses_C)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("rule", RULES)
def test_a_kernel_that_overwrites_the_logits_is_called_for_its_losses_first(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = SimpleNamespace(cross_entropy_=in_place)
    monkeypatch.setitem(sys.modules, "ablate.training.head_kernel", stand_in)
    monkeypatch.setattr(head_terms, "TRITON_ON", ("cpu",))
    monkeypatch.setattr(head_terms, "_triton", lambda: True)
    objective, model = objective_with(**loss_of(rule)), toys.llama(torch.float32)
    (work,) = works(objective)
    exact = measured(model, work, objective, tiled=False)
    found = measured(model, work, objective, tiled=True)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["focal", "eaft"])
def test_the_history_has_the_rules_loss_and_plain_cross_entropies_by_role(rule: str) -> None:
    ruled, plain = objective_with(**loss_of(rule)), objective_with()
    (work,) = works(plain)
    found, usual = (TokenLossModel(llama(), one)(work, True) for one in (ruled, plain))
    torch.testing.assert_close(found.by_role_R, usual.by_role_R)
    assert found.total.item() / work.divisor == pytest.approx(
        naive(rule, TOKEN_RULES[rule]).item(), rel=1e-10
    )
    assert (found.grad_norm_R - usual.grad_norm_R).abs().max() > 1e-3


@pytest.mark.parametrize("rule", ["focal"])
def test_lanes_train_as_cells_alone(rule: str) -> None:
    """Three cells of one rule at different weights of the prompt, in double precision."""
    cells = [lanes.cell(rule=rule, plw=plw, max_steps=4) for plw in (0.1, 1.0)]
    cells.append(lanes.cell(rule=rule, plw=0.5, normaliser="completion", max_steps=4))
    lanes.check_equal(lanes.exact(), cells, tolerance=lanes.EXACT, steps=4)


def test_rules_train_side_by_side_only_with_their_own_kind() -> None:
    run = toys.execution(lanes=4)
    cells = {f"{r}{w}": lanes.cell(rule=r, plw=w, execution=run) for r in RULES for w in (0.1, 1.0)}
    assert groups(cells) == [[f"{r}0.1", f"{r}1.0"] for r in RULES]


# --- identity


def test_cells_are_aliases_exactly_where_gradients_agree() -> None:
    """Every rule at two exponents and both scopes, with and without a weight on the prompt."""
    counts = dict(toys.tokenised(ROWS).counts)
    known: dict[str, Tensor] = {}
    modes = (("instruction", 0.0), ("none", 0.25))
    asked = itertools.product(modes, TOKEN_RULES, (0.0, 0.5, 2.0), ("all", "completion"))
    for (mode, plw), rule, exponent, scope in asked:
        objective = objective_with(mode, plw, **loss_of(rule, exponent, token_rule_scope=scope))
        _, grad = step(llama(), objective)
        name = str(canonical(objective, toys.counted(counts)))
        torch.testing.assert_close(grad, known.setdefault(name, grad), **EXACT)
    assert len(known) == (1 + 4 * 2) + (1 + 4 * 2 * 2)  # gates x exponents, x scopes
    for one, other in itertools.combinations(known.values(), 2):
        assert (one - other).abs().max() > 1e-8


def test_a_rule_that_changes_nothing_leaves_no_mark() -> None:
    counts = toys.counted(dict(toys.tokenised(ROWS).counts))
    plain = canonical(objective_with(), counts)
    assert "token_rule" not in plain
    assert plain == canonical(objective_with(**loss_of("focal", 0.0)), counts)
    assert plain == canonical(objective_with(token_rule_exponent=3.0), counts)
    silent = objective_with(completion=0.0, **loss_of("dft", token_rule_scope="completion"))
    assert canonical(silent, counts) == canonical(objective_with(completion=0.0), counts)
    assert token_rule_of(Loss(token_rule="dft")) == TokenRule("dft", 1.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"token_rule": "dft", "label_smoothing": 0.1}, "loss.label_smoothing=0.1.*token_rule=dft"),
        ({"token_rule_exponent": -1.0}, "loss.token_rule_exponent=-1.0: must be at least 0"),
        ({"token_rule_exponent": 1e6}, "at most 100"),
    ],
)
def test_what_a_rule_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Loss(**settings)
