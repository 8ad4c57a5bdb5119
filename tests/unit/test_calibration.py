"""What a run's first batches say, against a naive pass over the rows in float64."""

import pytest
import torch

from ablate.adapters import build
from ablate.adapters.init.calibration import Calibration
from ablate.data import batches
from ablate.errors import UserError
from ablate.roles import Role
from ablate.streams import Streams
from tests import toys
from tests.levels import DATA, base, cell, pristine
from tests.pairs import mean_gradient


def calibration(architecture: str = "llama", **changes) -> Calibration:
    asked = cell("lora", **changes)
    return Calibration(base(architecture), DATA, asked, streams=Streams(0))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradients_are_those_of_the_mean_loss(architecture):
    found = calibration(architecture)
    true = mean_gradient(architecture)
    got = found.gradients(list(true), 3)
    assert got.keys() == true.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient.double(), true[name], rtol=1e-3, atol=1e-7)
    assert all(p.grad is None and p.requires_grad for p in found.model.parameters())


def test_gradients_do_not_depend_on_micro_batches_or_layout():
    names = list(build.linear_shapes(pristine("llama")))[:3]
    one = calibration().gradients(names, 2)
    for changes in ({"micro_batch_size": 2}, {"layout": "packed"}):
        other = calibration(execution=toys.execution(**changes)).gradients(names, 2)
        for name in names:
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-7)


def test_mean_inputs_do_not_depend_on_micro_batches_and_need_no_logits():
    names = list(build.linear_shapes(pristine("llama")))[:3]
    asked = calibration()
    seen: list[int] = []
    asked.model.lm_head.register_forward_hook(lambda _, args, out: seen.append(out.numel()))
    one = asked.mean_inputs(names, 2)
    assert seen == [toys.VOCAB] * 2
    other = calibration(execution=toys.execution(micro_batch_size=2)).mean_inputs(names, 2)
    for name in names:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-9)


def test_the_data_are_the_runs_own_first_batches():
    asked = cell("lora", train=toys.train_settings(batch_size=2, epochs=2.0))
    found = Calibration(base("llama"), DATA, asked, streams=Streams(3)).batches(2)
    order = batches.order(DATA, train=asked.train, generator=Streams(3).numpy("order"))
    for (batch,), rows in zip(found, order, strict=False):
        assert sorted(batch.rows_E.tolist()) == sorted(rows.tolist())
    assert len(found) == 2


def test_the_invocation_is_what_the_template_ends_with():
    S, B, I, C = Role.SPECIAL, Role.BOILERPLATE, Role.INSTRUCTION, Role.COMPLETION  # noqa: E741
    rows = [
        ([1, 2, 3, 7, 8, 9], [B, I, I, B, S, C]),
        ([1, 5, 6, 7, 8, 9, 9], [B, I, B, B, S, C, C]),
    ]
    asked = cell("alora")

    def invocation(*examples) -> list[int]:
        data = toys.tokenised(examples)
        return Calibration(base("llama"), data, asked, streams=Streams(0)).invocation()

    assert invocation(*rows) == [7, 8]
    with pytest.raises(UserError, match="have none in common"):
        invocation(*rows, ([1, 2, 9], [B, I, C]))
    with pytest.raises(UserError, match=r"use dataset\.turns=last"):
        invocation(*rows, ([1, 7, 8, 9, 4, 7, 8, 9], [B, B, S, C, I, B, S, C]))
