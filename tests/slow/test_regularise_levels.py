"""Every adapter level under the regularisers: what is said of a kind is true of it."""

import copy
import dataclasses

import pytest
import torch

from ablate.adapters import build, registry
from ablate.adapters.method import holds
from ablate.adapters.start import at_base
from ablate.config.schema import Regulariser
from ablate.experiment import design, regularisers
from ablate.experiment.identity import Memo
from ablate.streams import Streams
from ablate.training.predict import predict
from ablate.training.regularisation import weight_distance
from ablate.training.regularisation.hooks import regularised
from tests import levels
from tests.regularised import (
    STRONG,
    cell,
    context_of,
    naive_norm,
    number,
    perturb,
    works,
)

pytestmark = pytest.mark.slow

ADAPTERS = levels.ADAPTING
SINGLE = 2e-3  # a merged weight less the base's, both float32; of the whole distance


def row_of(level):
    return registry.method(levels.SUBJECTS[level].adapter)


def test_weight_decay_is_refused_exactly_where_only_vectors_train():
    for name in ADAPTERS:
        trained = build.trained(levels.applied(cell(name)))
        vectors = all(p.ndim < 2 for p in trained.values())
        assert vectors == regularisers.trains_vectors(cell(name)), name


MEASURED = [
    name
    for name, subject in levels.SUBJECTS.items()
    if holds(row_of(name).has_delta, registry.settings(subject.adapter)) and name != "init=loftq"
]


@pytest.mark.parametrize("name", MEASURED)
def test_distance_is_that_of_the_merged_weights(name):
    """What PEFT folds into the weights is what was measured, whatever the start took out."""
    asked = dataclasses.replace(levels.SUBJECTS[name], train=cell().train)
    model = perturb(levels.applied(asked))
    before = dict(levels.pristine("llama").named_parameters())
    distance = number(weight_distance.distance(model, {}, 2.0))
    merged = copy.deepcopy(model).merge_and_unload()
    changes = [w.detach() - before[n].detach() for n, w in merged.named_parameters()]
    assert distance > 0
    assert distance == pytest.approx(naive_norm(changes, 2.0), rel=SINGLE)


@pytest.mark.parametrize("name", ADAPTERS)
def test_kl_is_to_the_base_under_every_adapter_and_leaves_what_trains(name):
    asked = cell(name, STRONG["kl"])
    model = levels.applied(asked)
    declared, [work] = set(build.trained(model)), works(asked)
    with regularised(model, asked, streams=Streams(0)) as held:
        model.train()
        predict(model, work)
        start = held.extra_loss(context_of(model, work, divisor=100.0))
        perturb(model, size=0.1)
        predict(model, work)
        penalty = held.extra_loss(context_of(model, work, divisor=100.0))
    assert set(build.trained(model)) == declared
    assert all(m.training for m in model.modules())
    if at_base(asked):
        virtual = registry.virtual_tokens(asked, build.linear_shapes(levels.pristine("llama")))
        assert virtual or abs(number(start)) < 1e-5
    assert number(penalty) > 1e-5
    penalty.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in build.trained(model).values()
    )


@pytest.mark.parametrize("name", [n for n in ADAPTERS if row_of(n).has_factors])
def test_rank_dropout_acts_on_every_kind_that_is_said_to_have_a_rank(name):
    asked = cell(name, STRONG["rank_dropout"])
    model = perturb(levels.applied(asked)).train()
    clean = levels.logits(model)
    with regularised(model, asked, streams=Streams(0)):
        masked = levels.logits(model)
    assert (masked - clean).abs().max() > 1e-4
    assert torch.equal(levels.logits(model), clean)


WITH_DROPOUT = [n for n in ADAPTERS if "dropout" in registry.method(levels.adapter(n)).options]


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_adapter_dropout_acts_on_every_kind_that_has_it(name):
    resolved = design.resolve_cell(cell(name, Regulariser(adapter_dropout=0.5)), Memo())
    model = perturb(levels.applied(resolved))
    clean = levels.logits(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = levels.logits(model.train())
    assert (dropped - clean).abs().max() > 1e-6
