"""Runs under a regulariser, and a naive distance, that its tests share."""

import dataclasses

import numpy as np
import torch

from ablate.adapters import build, hooks, optimizers
from ablate.config.schema import Regulariser
from ablate.data import batches
from ablate.objective import objective_of
from ablate.streams import Streams
from ablate.training.hooks import StepContext, combine
from ablate.training.loop import train
from ablate.training.regularisation.hooks import regularised
from ablate.training.weighed import weigh
from tests import levels, toys

# Strong enough to show within a few steps.
STRONG = {
    "minkowski": Regulariser(minkowski=0.5),
    "kl": Regulariser(kl=0.5),
    "neftune": Regulariser(neftune=5.0),
    "rank_dropout": Regulariser(rank_dropout=0.4),
    "attention_dropout": Regulariser(attention_dropout=0.2),
}


def cell(adapter="lora", regulariser=None, **changes):
    plain = toys.train_settings(batch_size=7, max_steps=4, schedule="constant", clip=None, lr=0.01)
    settings = {"train": plain, "regulariser": regulariser or Regulariser()}
    return levels.cell(adapter, **settings | changes)


def model_of(asked, base=None):
    base = toys.llama() if base is None else base
    return build.apply(base, asked, streams=Streams(0), data=levels.DATA)


def perturb(model, size=0.05):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += size * torch.randn(p.shape, generator=generator).to(p.dtype)
    return model


def works(asked, execution=None):
    """The micro-batches of a step on all rows."""
    objective = objective_of(asked)
    rows = np.arange(len(levels.DATA))
    made = batches.micro_batches(
        levels.DATA, rows, objective=objective, execution=execution or asked.execution
    )
    return [weigh(batch, objective) for batch in made]


def context_of(model, work, divisor=1.0):
    return StepContext(0, 1, model, None, work, divisor, True)  # type: ignore[arg-type]


def run(asked, seed=0, base=None, **execution):
    """The losses of a run, and the trained weights."""
    model = model_of(asked, base)
    streams = Streams(seed)
    with regularised(model, asked, streams=streams) as held:
        course = train(
            model,
            levels.DATA,
            asked.train,
            objective=objective_of(asked),
            streams=streams,
            execution=dataclasses.replace(asked.execution, **execution),
            hooks=combine(hooks.hooks(asked, streams=streams), held),
            make_optimizer=optimizers.maker(asked.optimizer),
        )
    weights = {n: p.detach().clone() for n, p in build.trained(model).items()}
    return [entry["loss"] for entry in course.history], weights, model


def number(value):
    return float(value.detach())


def naive_norm(changes, p):
    total = 0.0
    for change in changes:
        for entry in change.detach().numpy().astype(np.float64).ravel():
            total += abs(entry) ** p
    return total ** (1 / p)
