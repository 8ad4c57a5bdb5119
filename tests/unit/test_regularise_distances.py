"""Distances to the base, of weights and of predictions, against naive float64 references."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from ablate.adapters import build
from ablate.config.schema import Regulariser
from ablate.roles import Role
from ablate.streams import Streams
from ablate.training import parameters
from ablate.training.predict import predict
from ablate.training.regularisation import base_kl, weight_distance
from ablate.training.regularisation.hooks import regularised
from tests import levels, toys
from tests.regularised import (
    cell,
    context_of,
    model_of,
    naive_norm,
    number,
    perturb,
    works,
)

EXACT = 1e-12  # float64 against float64, in another order


# --- distance to the base weights


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_distance_of_full_tuning_and_its_gradient(p):
    asked = cell("full", Regulariser(minkowski=0.3, minkowski_p=p))
    model = model_of(asked)
    before = {n: w.detach().clone() for n, w in build.trained(model).items()}
    with regularised(model, asked, streams=Streams(0)) as held:
        perturb(model)
        [work] = works(asked)
        penalty = held.extra_loss(context_of(model, work))
    penalty.backward()
    changes = {n: w.detach() - before[n] for n, w in build.trained(model).items()}
    want = naive_norm(changes.values(), p)
    assert number(penalty) == pytest.approx(0.3 * want, rel=EXACT)
    for name, weight in build.trained(model).items():
        change = changes[name].numpy()
        slope = 0.3 * np.sign(change) * np.abs(change) ** (p - 1) / want ** (p - 1)
        np.testing.assert_allclose(weight.grad.numpy(), slope, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_distance_of_lora_is_that_of_its_product(p):
    asked = cell("lora", Regulariser(minkowski=0.3, minkowski_p=p))
    model = perturb(model_of(asked)).double()
    distance = weight_distance.distance(model, {}, p)
    distance.backward()
    layers = [m for m in model.modules() if hasattr(m, "lora_A")]
    pairs = [
        (m.lora_B["default"].weight, m.lora_A["default"].weight, m.scaling["default"])
        for m in layers
    ]
    changes = [s * (B.detach() @ A.detach()) for B, A, s in pairs]
    want = naive_norm(changes, p)
    assert number(distance) == pytest.approx(want, rel=EXACT)
    for (B, A, s), change in zip(pairs, changes, strict=True):
        slope = change.sign() * change.abs() ** (p - 1) / want ** (p - 1)
        torch.testing.assert_close(B.grad, s * slope @ A.detach().T, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(A.grad, s * B.detach().T @ slope, rtol=1e-10, atol=1e-14)


def test_a_distance_of_high_power_does_not_vanish():
    """1e-4 to the power of 24 is no float32."""
    model = model_of(cell("full"), levels.base("llama"))
    start = {n: w.detach().clone() for n, w in build.trained(model).items()}
    with torch.no_grad():
        next(iter(build.trained(model).values()))[0, 0] += 1e-4
    distance = weight_distance.distance(model, start, 24.0)
    distance.backward()
    assert number(distance) == pytest.approx(1e-4, rel=1e-2)
    slopes = [float(w.grad.abs().sum()) for w in build.trained(model).values()]
    assert sum(slopes) == pytest.approx(1)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_the_gradient_at_distance_zero_is_zero(adapter, p):
    asked = cell(adapter, Regulariser(minkowski=1.0, minkowski_p=p))
    model = model_of(asked)
    with regularised(model, asked, streams=Streams(0)) as held:
        penalty = held.extra_loss(context_of(model, works(asked)[0]))
    penalty.backward()
    assert number(penalty) == 0
    assert all(w.grad is None or not w.grad.any() for w in build.trained(model).values())


def test_distance_counts_trained_embeddings_beside_an_adapter():
    asked = cell("lora", Regulariser(minkowski=1.0), embeddings="trained")
    model = model_of(asked)
    ends = {n: p for n, p in build.trained(model).items() if "lora" not in n}
    with regularised(model, asked, streams=Streams(0)) as held:
        with torch.no_grad():
            for p in ends.values():
                p += 0.5
        penalty = held.extra_loss(context_of(model, works(asked)[0]))
    assert number(penalty) == pytest.approx(0.5 * math.sqrt(sum(p.numel() for p in ends.values())))


def test_the_graph_of_a_distance_holds_less_than_one_matrix():
    asked = cell("lora", embeddings="trained")
    model = perturb(model_of(asked))
    start = {n: p.detach() - 1 for n, p in parameters.base_parameters(model).items()}
    held: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        distance = weight_distance.distance(model, start, 2.0)
    assert sum(held) < min(p.numel() for p in start.values()) / 2
    distance.backward()
    assert all(p.grad.any() for p in parameters.base_parameters(model).values())


# --- distance to the base's predictions


def test_the_copy_of_the_base_shares_what_does_not_train(monkeypatch):
    asked = cell("lora", Regulariser(kl=0.5), embeddings="trained")
    model, copies, real = model_of(asked), [], copy.deepcopy

    def copied(value, *memo):
        found = real(value, *memo)
        if value is model:
            copies.append(found)
        return found

    monkeypatch.setattr(base_kl.copy, "deepcopy", copied)
    with regularised(model, asked, streams=Streams(0)):
        pairs = list(zip(model.parameters(), copies[0].parameters(), strict=True))
    assert all((mine is other) != mine.requires_grad for mine, other in pairs)
    assert not any(other.requires_grad for _, other in pairs)


def test_divergence_and_its_gradient():
    draws = np.random.default_rng(0)
    base, other = draws.normal(size=(2, 5, 11)) * 3
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (base, other))
    logits = torch.tensor(other, requires_grad=True)
    found = base_kl.divergences(torch.tensor(base), logits)
    found.sum().backward()
    np.testing.assert_allclose(found.detach(), (p * np.log(p / q)).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(logits.grad, q - p, rtol=1e-10, atol=1e-14)


PLW = 0.25  # exact in float32, which weights are


def naive_kl(base, model, weight):
    """The penalty of a step from whole forward passes, row by row and target by target."""
    total = 0.0
    for row in range(len(levels.DATA)):
        ids, roles = levels.DATA.row(row)
        logs = [
            m(input_ids=torch.tensor(ids[None].astype(np.int64))).logits[0].log_softmax(-1)
            for m in (base, model)
        ]
        for at in range(len(ids) - 1):
            u = 1.0 if roles[at + 1] == Role.COMPLETION else PLW
            total = total + u * (logs[0][at].exp() * (logs[0][at] - logs[1][at])).sum()
    return weight * total


@pytest.mark.parametrize("tiled_from", [0, 2**26])
@pytest.mark.parametrize("embeddings", ["frozen", "trained"])
@pytest.mark.parametrize(
    ("adapter", "layout"),
    [
        *itertools.product(("full", "lora", "mora"), ("padded", "packed")),
        ("prompt", "padded"),  # prompts are not packed
    ],
)
def test_kl_and_its_gradient(monkeypatch, adapter, embeddings, layout, tiled_from):
    monkeypatch.setattr("ablate.training.predict.TILED_FROM", tiled_from)
    uneven = {"masking": toys.masking("none"), "plw": PLW}
    asked = cell(adapter, Regulariser(kl=0.3), embeddings=embeddings, **uneven)
    base, model = toys.llama(), model_of(asked)
    with regularised(model, asked, streams=Streams(0)) as held:
        perturb(model)
        model.train()
        losses = []
        for work in works(asked, toys.execution(layout=layout, micro_batch_size=3)):
            predict(model, work)
            losses.append(held.extra_loss(context_of(model, work, divisor=7.0)))
        model.eval()
    sum(losses).backward()
    grads = {n: w.grad.clone() for n, w in build.trained(model).items() if w.grad is not None}
    model.zero_grad()
    if adapter == "prompt":
        count = model.active_peft_config.num_virtual_tokens
        plain = model.forward
        model.forward = lambda **given: types_of(plain(**given), count)
    want = naive_kl(base, model, 0.3 / 7.0)
    want.backward()
    assert number(sum(losses)) == pytest.approx(number(want), rel=1e-10)
    assert grads
    single = {"rtol": 1e-3, "atol": 1e-6}  # PEFT reads prompts through float32
    tolerance = single if adapter == "prompt" else {"rtol": 1e-7, "atol": 1e-12}
    for name, grad in grads.items():
        torch.testing.assert_close(grad, build.trained(model)[name].grad, **tolerance)


def types_of(output, count):
    output.logits = output.logits[:, count:]
    return output
