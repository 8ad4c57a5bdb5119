"""Micro-batches by tokens, running out of memory, and what waits for the device."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ablate.config.schema import Execution, Loss
from ablate.data.batches import split
from ablate.errors import UserError
from ablate.objective import make_objective
from ablate.streams import Streams
from ablate.training import loop, room
from ablate.training.history import Diverged, Result
from ablate.training.hooks import Hooks
from ablate.training.loop import train
from tests import toys

ROWS = toys.examples(24)


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_FOUND", {})


def run(model: Any, *, hooks: Hooks | None = None, **changes: Any) -> Result:
    scope = changes.pop("scope", "batch")
    settings = toys.train_settings(batch_size=8, epochs=2.0, **changes.pop("settings", {}))
    return train(
        model,
        toys.tokenised(ROWS),
        settings,
        objective=make_objective(toys.masking("none"), 0.1, 1.0, Loss(scope=scope)),
        streams=Streams(0),
        execution=toys.execution(**changes),
        hooks=hooks or Hooks(),
    )


def weights_of(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -- the split --------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [None, "auto", 1, 3])
@pytest.mark.parametrize("tokens", [None, 1, 40, 10_000])
def test_micro_batches_keep_to_both_limits_and_are_as_few_as_that(
    packed: bool, size: Any, tokens: int | None
) -> None:
    lengths = sorted(np.random.default_rng(0).integers(3, 20, 17).tolist(), reverse=True)
    execution = Execution(micro_batch_size=size, micro_batch_tokens=tokens)
    parts = [lengths[part] for part in split(lengths, execution, packed=packed)]
    assert [length for part in parts for length in part] == lengths
    most = size if isinstance(size, int) else math.inf

    def fits(part: list[int]) -> bool:
        taken = sum(part) if packed else len(part) * part[0]
        return len(part) <= most and taken <= (tokens or math.inf)

    assert all(fits(part) or len(part) == 1 for part in parts)
    for part, following in itertools.pairwise(parts):
        assert not fits([*part, following[0]])


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_budget_of_tokens_trains_the_same_weights(layout: str) -> None:
    expected = toys.llama()
    whole = run(expected)
    model = toys.llama()
    result = run(model, layout=layout, micro_batch_tokens=50)
    torch.testing.assert_close(weights_of(model), weights_of(expected), rtol=1e-7, atol=1e-9)
    assert result.micro_batch_tokens <= 50 < whole.micro_batch_tokens


# -- out of memory ----------------------------------------------------------------------------


class SmallGPU:
    """Makes a model's forward pass fail where its batch has more than `tokens` tokens."""

    def __init__(self, model: nn.Module, tokens: int, error: str = "") -> None:
        self.tokens, self.error = tokens, error
        self.sizes: list[int] = []
        # behind the first layer, so that dropout has drawn
        model.get_submodule("model.layers.1").register_forward_pre_hook(self._check)

    def _check(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.sizes.append(args[0].shape[:2].numel())
        if self.sizes[-1] > self.tokens:
            raise RuntimeError(self.error) if self.error else torch.OutOfMemoryError("full")


@pytest.mark.parametrize("error", ["", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_out_of_memory_is_the_same_step_in_smaller_parts(layout: str, error: str) -> None:
    expected = toys.llama()
    known = run(expected, layout=layout)
    model = toys.llama()
    small = SmallGPU(model, tokens=60, error=error)
    result = run(model, layout=layout)
    torch.testing.assert_close(weights_of(model), weights_of(expected), rtol=1e-7, atol=1e-9)
    for entry, other in zip(result.history, known.history, strict=True):
        assert entry["loss"] == pytest.approx(other["loss"], rel=1e-9)
        assert entry["tokens"] == other["tokens"]
    assert result.out_of_memory > 0
    assert result.micro_batch_tokens <= 60
    assert sum(size > 60 for size in small.sizes) == result.out_of_memory


def test_the_step_that_is_taken_again_draws_what_it_would_have_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the split that fits, asked for from the start: the same bits, with dropout."""

    def halve(self: room.Room, works: Any) -> None:
        self.tokens, self.halved = 64, self.halved + 1

    expected, model = (toys.llama(attention_dropout=0.3) for _ in range(2))
    run(expected, micro_batch_tokens=64)
    monkeypatch.setattr(room.Room, "halve", halve)
    small = SmallGPU(model, tokens=64)
    assert run(model).out_of_memory == 1
    assert small.sizes[0] > 64
    assert torch.equal(weights_of(model), weights_of(expected))


def test_generators_of_hooks_start_a_step_again_as_they_were() -> None:
    drawn: list[tuple[int, float]] = []
    generator = torch.Generator().manual_seed(0)

    def draw(context: Any) -> None:
        drawn.append((context.step, float(torch.rand((), generator=generator))))

    model = toys.llama()
    SmallGPU(model, tokens=60)
    run(model, hooks=Hooks(before_forward=draw, draws=(generator,)))
    firsts = [number for step, number in drawn if step == 0]
    assert len(set(firsts)) < len(firsts)  # the failed passes and the one that went well
    alone = torch.Generator().manual_seed(0)
    assert firsts[0] == float(torch.rand((), generator=alone))


def test_what_fitted_is_where_the_next_run_of_the_same_sizes_starts() -> None:
    first, second, other = toys.llama(), toys.llama(), toys.llama(num_hidden_layers=3)
    smalls = [SmallGPU(model, tokens=60) for model in (first, second, other)]
    found = [run(model).out_of_memory for model in (first, second, other)]
    assert found[0] > 0
    assert found[1] == 0
    assert found[2] > 0
    assert max(smalls[1].sizes) <= 60


def test_a_row_that_does_not_fit_alone_is_told_with_the_cure() -> None:
    model = toys.llama()
    SmallGPU(model, tokens=5)
    with pytest.raises(UserError, match=r"a single row of \d+ tokens.*gradient_checkpointing"):
        run(model)


@pytest.mark.parametrize("given", [{"scope": "microbatch"}, {"micro_batch_size": None}])
def test_a_split_that_was_asked_for_or_that_is_the_loss_is_kept(given: dict[str, Any]) -> None:
    model = toys.llama()
    SmallGPU(model, tokens=60)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        run(model, **given)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    model = toys.llama()
    SmallGPU(model, tokens=60, error="shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(model)


# -- waits ------------------------------------------------------------------------------------

WAITS = ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "cpu", "numpy")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the calls by which Python code reads a tensor's value, floating point or boolean."""
    counted: Counter[str] = Counter()
    for name in WAITS:
        known = getattr(Tensor, name)

        def read(self: Tensor, *args: Any, _known: Any = known, _name: str = name) -> Any:
            counted[_name] += 1
            return _known(self, *args)

        monkeypatch.setattr(Tensor, name, read)
    return counted


def test_a_step_reads_its_numbers_once_and_nothing_else(waits: Counter[str]) -> None:
    """On the device, that is: the counts and lengths are read where they are made, on the host."""
    seen: list[Counter[str]] = []
    hooks = Hooks(
        before_forward=lambda context: waits.clear(),
        after_step=lambda context: seen.append(Counter(waits)),
    )
    run(toys.llama(torch.float32), layout="packed", hooks=hooks)
    assert seen == [Counter({"tolist": 1})] * 6
    seen.clear()
    run(toys.llama(torch.float32), layout="padded", hooks=hooks)
    assert seen[0]["__bool__"] > 0  # transformers' test for packed rows, which a GPU is spared


@pytest.mark.parametrize("late", [0, 1])
def test_a_step_that_diverges_is_told_under_its_own_number(
    late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(loop.Ledger):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self._late = late

    monkeypatch.setattr(loop, "Ledger", Late)

    def spoil(context: Any) -> None:
        if context.step == 2:
            next(iter(context.model.parameters())).grad.fill_(math.nan)
        if context.step > 2:
            raise RuntimeError("a hook that cannot cope with what is not a number")

    with pytest.raises(Diverged, match="step 3: grad_norm is nan") as caught:
        run(toys.llama(), hooks=Hooks(after_backward=spoil))
    assert caught.value.step == 3


def test_a_history_that_is_written_late_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(self: Any, *given: Any) -> None:
        known(self, *given)
        self._late = 1

    known = loop.Ledger.__init__
    at_once = run(toys.llama())
    monkeypatch.setattr(loop.Ledger, "__init__", late)
    assert run(toys.llama()).history == at_once.history
