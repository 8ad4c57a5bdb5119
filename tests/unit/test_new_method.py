"""Adding a method is one row and one YAML file; no table elsewhere has to know of it.

A toy is added here from outside the package: a row with PEFT's own LoRA as its configuration, its
own start and its own hooks, and a level in a folder given by --config-dir.
"""

import pytest
import torch

from ablate.adapters import build, registry, weights
from ablate.adapters.method import Method, Size, each, smallest_side
from ablate.adapters.options import positive
from ablate.config.schema import Regulariser
from ablate.errors import UserError
from ablate.experiment.request import plan_grid
from ablate.streams import Streams
from ablate.training.hooks import Hooks
from tests import levels
from tests.regularised import run

YAML = """\
# A toy.
name: toy_level
kind: toy
options:
  pull: 0.5
"""
RANK = 3
CALLS: list[str] = []


def start(module, context):
    """B is one everywhere, so that its start can be told from PEFT's zero."""
    CALLS.append("start")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1e-3)


def hooks(options, streams):
    assert options == {"pull": 0.5}
    return Hooks(after_step=lambda context: CALLS.append("step"))


def refuses(cell, options):
    return "adapter=toy_level: not at rank 5" if cell.rank == 5 else ""


ROW = Method(
    config="LoraConfig",
    options={"pull": positive(1.0)},
    names={"pull": ""},
    size=Size(setting="r", count=each(lambda r, d, k: r * (d + k)), largest=smallest_side),
    has_delta=lambda options: options["pull"] < 1,
    has_factors=True,
    starts_at_base=False,
    start="tests.unit.test_new_method:start",
    hooks="tests.unit.test_new_method:hooks",
    refuses=refuses,
    optimizers=("adamw", "lora_plus"),
)


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The toy among the methods; returns a function from a command line to its cells."""
    monkeypatch.setitem(registry.KINDS, "toy", ROW)
    CALLS.clear()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "toy_level.yaml").write_text(YAML)

    def planned(*arguments):
        asked = ["adapter=toy_level", "train.lr=0.01", *arguments]
        made = plan_grid(asked, config_dirs=[str(tmp_path)])  # what --config-dir names
        return [named for named in made.design.cells if not named.cell.is_base]

    return planned


def test_it_has_an_identity_and_a_budget(toy):
    small, large = toy("rank=3,4")
    assert small.identity.train_key != large.identity.train_key
    assert small.identity.description["adapter"]["kind"] == "toy"
    shapes = small.identity.files.linear_shapes
    budget = registry.budget(small.cell, shapes)
    assert budget.asked == budget.got == sum(RANK * (d + k) for d, k in shapes.values())


def test_its_refusals_are_those_of_its_row(toy):
    with pytest.raises(UserError, match="adapter=toy_level: not at rank 5"):
        toy("rank=5")
    with pytest.raises(UserError, match="optimizer=lora_fa: adapter=toy_level does not support"):
        toy("optimizer=lora_fa")
    assert toy("optimizer=lora_plus", "regulariser.rank_dropout=0.1")
    assert toy("regulariser.minkowski=0.1")
    with pytest.raises(UserError, match="adds no matrix"):
        toy("regulariser.minkowski=0.1", "adapter.options.pull=2.0")


def test_it_is_built_trained_saved_and_loaded(toy, tmp_path):
    asked = levels.cell(toy(f"rank={RANK}")[0].cell.adapter, rank=RANK)
    module = levels.applied(asked)
    assert CALLS == ["start"]
    trained = build.trained(module)
    assert sum(p.numel() for p in trained.values()) == registry.trainable_parameters(
        asked, levels.sizes("llama")
    )
    losses = levels.fit(module, asked)
    assert losses[-1] < losses[0]
    assert CALLS == ["start"] + ["step"] * levels.STEPS
    weights.save(module, tmp_path / "weights")
    loaded = weights.load(levels.base("llama"), tmp_path / "weights", asked, streams=Streams(9))
    assert CALLS.count("start") == 1  # a loaded adapter is not started again
    torch.testing.assert_close(levels.logits(loaded), levels.logits(module), rtol=0, atol=0)


def test_regularisers_act_on_it(toy):
    level = toy()[0].cell.adapter
    plain = run(levels.cell(level, rank=RANK))[0]
    for asked in (Regulariser(minkowski=0.5), Regulariser(rank_dropout=0.4)):
        assert run(levels.cell(level, rank=RANK, regulariser=asked))[0] != plain
