"""LaMDA's schedule: which columns are frozen when, and that they hold still."""

import dataclasses

import torch

from ablate.adapters.three_factor import lamda
from ablate.streams import Streams
from ablate.training.hooks import StepContext
from tests.factors import adapted, factor, fit, layer_of


def test_columns_freeze_one_by_one_over_the_share():
    counts = [lamda.frozen_columns(step, 100, 0.3, 6) for step in range(100)]
    assert counts[:31] == [min(6, step // 5) for step in range(31)]
    assert counts[30:] == [6] * 70
    assert [lamda.frozen_columns(s, 10, 0.3, 4) for s in range(5)] == [0, 1, 2, 4, 4]
    assert [lamda.frozen_columns(s, 3, 0.3, 8) for s in range(3)] == [0, 8, 8]
    assert lamda.frozen_columns(9, 10, 1.0, 10) == 9


def test_frozen_columns_hold_still_under_contextum_and_decay():
    model, steps = adapted("lamda", "llama"), 20
    hooks, seen = lamda.hooks({"freeze": 0.5}, Streams(0)), []

    def watch(context: StepContext) -> None:
        hooks.after_step(context)
        layer = layer_of(context.model)
        seen.append((factor(layer, "B").clone(), factor(layer, "M").clone()))

    watched = dataclasses.replace(hooks, after_step=watch)
    fit(model, steps, watched, weight_decay=0.1)
    n = seen[0][0].shape[1]
    for step in range(1, steps):
        (B0, M0), (B1, M1) = seen[step - 1], seen[step]
        held = lamda.frozen_columns(step, steps, 0.5, n)
        same = [torch.equal(B0[:, i], B1[:, i]) for i in range(n)]
        assert same == [True] * held + [False] * (n - held)
        assert not torch.equal(M0, M1)
    assert held == n
