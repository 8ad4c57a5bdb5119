"""Order, weights and layout: a layout changes no logit, no gradient and no sum of weights."""

from typing import Any

import numpy as np
import pytest
import torch

from ablate.config.schema import Execution, Loss, Masking, Train
from ablate.data.batches import Batch, micro_batches, order
from ablate.data.targets import row_generator, row_weights
from ablate.data.tokenise import Labels, Summary, Tokenised
from ablate.objective import Objective, make_objective
from ablate.roles import MASKED_ROLES, Role

# The same sums in another order: float32, 2 layers, logits of order 1.
FLOAT32 = 3e-6
S, B, P, C, T = Role.SPECIAL, Role.BOILERPLATE, Role.INSTRUCTION, Role.COMPLETION, Role.TEXT


def tokenised(rows: list[list[Role]], seed: int = 0) -> Tokenised:
    roles = np.array([r for row in rows for r in row], dtype=np.uint8)
    ids = np.random.default_rng(seed).integers(0, 50, len(roles)).astype(np.int32)
    starts = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    facts: dict[str, Any] = dict.fromkeys(Summary.__dataclass_fields__)
    return Tokenised(ids=ids, labels=Labels.of(roles), starts=starts, summary=Summary(**facts))


def random_data(n: int = 7, seed: int = 1) -> Tokenised:
    rng = np.random.default_rng(seed)
    rows = [
        [S, *[B] * int(rng.integers(1, 3)), *[P] * int(rng.integers(1, 9)), *[C] * 3]
        for _ in range(n)
    ]
    return tokenised(rows, seed)


def objective(plw: float = 0.1, normaliser: str = "weight", **weights: Any) -> Objective:
    table = dict.fromkeys(MASKED_ROLES, "plw") | {"completion": 1.0}
    flags = {k: weights.pop(k) for k in ("permute", "first_header_only") if k in weights}
    masking = Masking(name="m", weights=table | weights, **flags)
    return make_objective(masking, plw, 1.0, Loss(normaliser=normaliser))  # type: ignore[arg-type]


def train(**settings: Any) -> Train:
    return Train(name="t", lr=1e-3, **({"batch_size": 4, "epochs": 1.0} | settings))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- order ------------------------------------------------------------------------------------


def test_every_epoch_shows_every_row_once_and_only_the_last_step_is_short() -> None:
    data = random_data(10)
    steps = order(data, train=train(epochs=3.0), generator=rng())
    assert [len(s) for s in steps] == [4] * 7 + [2]
    stream = np.concatenate(steps)
    for epoch in range(3):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert list(stream[:10]) != list(stream[10:20])


def test_the_number_of_steps_is_that_of_the_papers_setting() -> None:
    """52,002 rows, 3 epochs, batch 128 are about 1,219 steps (plw.md, section 3)."""
    data = tokenised([[S, C]] * 52_002)
    steps = order(data, train=train(epochs=3.0, batch_size=128), generator=rng())
    assert len(steps) == 1219


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"epochs": 0.5}, [4, 1]),
        ({"epochs": 1.25}, [4, 4, 4]),
        ({"epochs": 0.001}, [1]),
        ({"max_steps": 5}, [4] * 5),
        ({"max_steps": 1, "epochs": 9.0}, [4]),
        ({"batch_size": 64}, [10]),
    ],
)
def test_fractions_of_epochs_and_max_steps(settings: dict[str, Any], sizes: list[int]) -> None:
    steps = order(random_data(10), train=train(**settings), generator=rng())
    assert [len(s) for s in steps] == sizes


def test_the_order_depends_on_the_generator_alone_and_longer_runs_begin_alike() -> None:
    data = random_data(10)
    one = order(data, train=train(epochs=2.0), generator=rng())
    again = order(data, train=train(epochs=5.0), generator=rng())
    other = order(data, train=train(epochs=2.0), generator=rng(1))
    assert [s.tolist() for s in one] == [s.tolist() for s in again[:5]]
    assert [s.tolist() for s in one] != [s.tolist() for s in other]


def test_a_token_budget_is_kept_and_nothing_is_lost() -> None:
    data = random_data(40)
    settings = train(batch_unit="tokens", batch_size=30, epochs=2.0)
    steps = order(data, train=settings, generator=rng())
    filled = [int(data.lengths[s].sum()) for s in steps]
    assert max(filled) <= 30
    for step, following in zip(filled, steps[1:], strict=False):
        assert step + data.lengths[following[0]] > 30  # the next one would not have fitted
    assert sorted(np.concatenate(steps)) == sorted([*range(40)] * 2)
    steps = order(data, train=train(batch_unit="tokens", batch_size=2), generator=rng())
    assert [len(s) for s in steps] == [1] * 40  # a row longer than the budget is a step


# -- weights ----------------------------------------------------------------------------------

ROW = np.array([S, B, P, P, C, C], dtype=np.uint8)


@pytest.mark.parametrize(
    ("normaliser", "den"),
    [
        ("weight", [0, 0.1, 0.1, 0.1, 1, 1]),
        ("completion", [0, 0, 0, 0, 1, 1]),
        ("tokens", [0, 1, 1, 1, 1, 1]),
        ("nonzero", [0, 1, 1, 1, 1, 1]),
        ("examples", [0, 0, 0, 0, 0, 0]),
    ],
)
def test_weights_of_a_row_by_hand(normaliser: str, den: list[float]) -> None:
    num_L, den_L = row_weights(Labels.of(ROW), objective(0.1, normaliser), row=0, permute=None)
    np.testing.assert_allclose(num_L, [0, 0.1, 0.1, 0.1, 1, 1], rtol=1e-7)
    np.testing.assert_allclose(den_L, den, rtol=1e-7)


def test_the_first_token_is_never_a_target_whatever_its_role() -> None:
    for role in Role:
        num_L, den_L = row_weights(
            Labels.of(np.array([role, C], dtype=np.uint8)),
            objective(1.0, "tokens"),
            row=0,
            permute=None,
        )
        assert (num_L[0], den_L[0]) == (0, 0)


def test_text_is_trained_whole_under_every_mode() -> None:
    for plw in (0.0, 0.3, 1.0):
        num_L, _ = row_weights(
            Labels.of(np.full(4, T, dtype=np.uint8)), objective(plw), row=0, permute=None
        )
        assert num_L.tolist() == [0, 1, 1, 1]


def test_the_released_im_masks_the_first_header_only() -> None:
    released = objective(1.0, special=1.0, first_header_only=True)
    roles = np.array([S, S, P, S, S, C, C, S], dtype=np.uint8)
    num_L, den_L = row_weights(Labels.of(roles), released, row=0, permute=None)
    assert num_L.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert den_L.tolist() == num_L.tolist()
    plain = np.array([B, P, S, C], dtype=np.uint8)  # no header in front: nothing but token 0
    assert row_weights(Labels.of(plain), released, row=0, permute=None)[0].tolist() == [0, 1, 1, 1]


def test_the_placebo_permutes_the_same_weights_over_the_targets() -> None:
    roles = np.array([S, *[P] * 30, *[C] * 10], dtype=np.uint8)
    placebo = objective(0.25, "weight", permute=True)
    num_L, den_L = row_weights(Labels.of(roles), placebo, row=3, permute=rng())
    plain_L, _ = row_weights(Labels.of(roles), objective(0.25), row=3, permute=None)
    assert num_L[0] == 0
    np.testing.assert_array_equal(np.sort(num_L), np.sort(plain_L))
    assert num_L.tolist() != plain_L.tolist()
    np.testing.assert_array_equal(num_L, den_L)  # a target keeps its pair


def test_the_placebo_depends_on_seed_and_row_not_on_plw_or_what_was_drawn_before() -> None:
    roles = np.array([S, *[P] * 30, *[C] * 10], dtype=np.uint8)

    def heavy(plw: float, row: int, root: np.random.Generator) -> list[bool]:
        num_L, _ = row_weights(
            Labels.of(roles), objective(plw, permute=True), row=row, permute=root
        )
        return (num_L == 1).tolist()

    used = rng()
    used.random(100)
    assert heavy(0.1, 3, rng()) == heavy(0.9, 3, used)
    assert heavy(0.1, 3, rng()) != heavy(0.1, 4, rng())
    assert heavy(0.1, 3, rng()) != heavy(0.1, 3, rng(1))
    assert row_generator(rng(), 5).random() == row_generator(used, 5).random()


def test_a_placebo_without_its_draws_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="needs a generator"):
        row_weights(Labels.of(ROW), objective(permute=True), row=0, permute=None)


# -- layout -----------------------------------------------------------------------------------


def laid(data: Tokenised, layout: Any, size: int | None = None, **kind: Any) -> list[Batch]:
    execution = Execution(layout=layout, micro_batch_size=size, device="cpu")
    return micro_batches(
        data,
        np.arange(len(data)),
        objective=objective(0.3, **kind),
        execution=execution,
        permute_generator=rng(),
    )


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("size", [None, 3, 1])
def test_every_row_is_there_once_with_its_own_weights(layout: str, size: int | None) -> None:
    data = random_data()
    seen = []
    for batch in laid(data, layout, size, permute=True):
        assert batch.examples == len(batch.rows_E) <= (size or 7)
        assert batch.tokens == int((batch.roles_BL != Role.PAD).sum())
        for number, row in enumerate(batch.rows_E.tolist()):
            mine_BL = (batch.example_BL == number) & (batch.roles_BL != Role.PAD)
            ids_L, roles_L = data.row(row)
            num_L, den_L = row_weights(
                Labels.of(roles_L), objective(0.3, permute=True), row=row, permute=rng()
            )
            assert batch.ids_BL[mine_BL].tolist() == ids_L.tolist()
            assert batch.roles_BL[mine_BL].tolist() == roles_L.tolist()
            np.testing.assert_array_equal(batch.num_BL[mine_BL].numpy(), num_L)
            np.testing.assert_array_equal(batch.den_BL[mine_BL].numpy(), den_L)
            assert int(batch.lengths_E[number]) == len(ids_L)
            seen.append(row)
        pads_BL = batch.roles_BL == Role.PAD
        assert float(batch.num_BL[pads_BL].sum() + batch.den_BL[pads_BL].sum()) == 0
    assert sorted(seen) == list(range(7))


def test_padding_is_small_because_rows_are_sorted_inside_the_step() -> None:
    data = random_data(64)
    ours = sum(b.ids_BL.numel() for b in laid(data, "padded", 8))
    lengths = data.lengths
    unsorted = sum(8 * int(lengths[i : i + 8].max()) for i in range(0, 64, 8))
    assert ours < unsorted
    firsts = [int(b.lengths_E[0]) for b in laid(data, "padded", 8)]
    assert firsts == sorted(firsts, reverse=True)


def test_packed_positions_restart_at_every_example() -> None:
    (batch,) = laid(random_data(), "packed")
    assert batch.positions_BL is not None
    restarts = np.flatnonzero(batch.positions_BL[0].numpy() == 0)
    assert restarts.tolist() == [0, *np.cumsum(batch.lengths_E.numpy())[:-1].tolist()]
    assert float(batch.num_BL[0, restarts].sum()) == 0  # nothing predicts the next one's first


def model(seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).train()


def step(net: Any, parts: list[Batch]) -> dict[int, torch.Tensor]:
    """Run a step's micro-batches, leave gradients, and return each row's logits."""
    divisor = sum(float(b.den_BL.sum()) for b in parts)
    logits: dict[int, torch.Tensor] = {}
    for batch in parts:
        out_BLV = net(
            input_ids=batch.ids_BL, position_ids=batch.positions_BL, use_cache=False
        ).logits
        targets_BL = batch.ids_BL.roll(-1, 1)
        loss_BL = torch.nn.functional.cross_entropy(
            out_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none"
        ).view_as(targets_BL)
        ((loss_BL * batch.num_BL.roll(-1, 1)).sum() / divisor).backward()
        for number, row in enumerate(batch.rows_E.tolist()):
            mine_BL = (batch.example_BL == number) & (batch.roles_BL != Role.PAD)
            logits[row] = out_BLV[mine_BL].detach()
    return logits


@pytest.mark.parametrize(
    ("layout", "size"), [("packed", None), ("packed", 3), ("padded", 2), ("padded", None)]
)
def test_a_layout_changes_no_logit_and_no_gradient(layout: str, size: int | None) -> None:
    """Against one unpadded row at a time."""
    data = random_data()
    alone, together = model(), model()
    torch.testing.assert_close(alone.lm_head.weight, together.lm_head.weight)
    expected = step(alone, laid(data, "padded", 1))
    found = step(together, laid(data, layout, size))
    for row in range(len(data)):
        torch.testing.assert_close(found[row], expected[row], rtol=0, atol=FLOAT32)
    for one, two in zip(alone.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=0, atol=FLOAT32)


@torch.no_grad()
def test_a_mask_of_ones_would_let_packed_examples_see_each_other() -> None:
    """The trap that `positions_BL` alone does not close: the test above can fail."""
    (batch,) = laid(random_data(), "packed")
    net = model()
    given = {"input_ids": batch.ids_BL, "position_ids": batch.positions_BL}
    right = net(**given, use_cache=False).logits
    ones = torch.ones_like(batch.ids_BL)
    leaking = net(**given, attention_mask=ones, use_cache=False).logits
    assert float((right - leaking).abs().max()) > 1e-3


def test_a_batch_moves_as_a_whole() -> None:
    (batch,) = laid(random_data(), "padded")
    moved = batch.to("meta")
    assert {moved.ids_BL.device.type, moved.num_BL.device.type} == {"meta"}
    assert moved.positions_BL is None
