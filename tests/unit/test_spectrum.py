"""The spectrum of a change against numpy, and the rank and spectrum laws of MoRA's maps with it."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from ablate.adapters.mora.layer import MoraConfig
from ablate.evaluate.measures import changes
from ablate.evaluate.spectrum import counts
from tests import toys

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
LAYERS = 2


def counted(model, base):
    """The counts by kind of matrix, then by metric."""
    sizes = {name: float(w.detach().double().norm()) for name, w in base.named_parameters()}
    found = counts(changes(model, base), sizes)
    metrics = ("above_0.1", "above_tenth", "rank", "largest")
    kinds = {name.removeprefix("rank_") for name in found if name.startswith("rank_")}
    assert len(found) == len(kinds) * len(metrics)
    return {kind: {metric: found[f"{metric}_{kind}"] for metric in metrics} for kind in kinds}


def moved(base, sizes):
    """`base` with q_proj of each layer changed by a matrix of these singular values."""
    found, draw = copy.deepcopy(base), np.random.default_rng(0)
    for layer, values in zip(found.model.layers, sizes, strict=True):
        weight = layer.self_attn.q_proj.weight
        left, _ = np.linalg.qr(draw.normal(size=(weight.shape[0], len(values))))
        right, _ = np.linalg.qr(draw.normal(size=(weight.shape[1], len(values))))
        with torch.no_grad():
            weight += torch.from_numpy(left * values @ right.T)
    return found


def test_counts_are_those_of_the_singular_values_that_were_put_in():
    base = toys.llama()
    sizes = [(2.0, 1.0, 0.5, 0.15, 0.01), (0.5, 0.3, 0.09, 0.06, 0.04)]
    found = counted(moved(base, sizes), base)
    q = found["q_proj"]
    assert q["above_0.1"] == [4, 2]
    assert q["above_tenth"] == [3, 4]  # of 2.0, and of 0.5
    assert q["rank"] == [5, 5]
    assert q["largest"] == pytest.approx([2.0, 0.5], abs=1e-6)
    assert all(
        set(values) == {0.0} for values in found["down_proj"].values() for values in [values]
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_merged_adapter_has_its_own_rank_in_any_precision(dtype):
    """Rounding of the merged weight would else be a change of full rank."""
    base = toys.llama().to(dtype)
    settings = LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(copy.deepcopy(base), settings)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = counted(model, base)
    assert len(found) == 7
    assert all(metrics["rank"] == [3.0] * LAYERS for metrics in found.values())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_a_shared_square_is_stretched_and_above_an_absolute_threshold_more_often():
    """Sharing has sqrt(nm) times the singular values of M (facts of arXiv 2405.12130), and its q
    of them; truncation has those of M itself. A relative threshold tells no difference.
    """
    base = toys.llama(hidden_size=32, intermediate_size=48)
    found, squares = {}, {}
    for kind in ("sharing", "truncate"):
        settings = MoraConfig(r=1, mora_type=kind, target_modules=["q_proj"])
        model = get_peft_model(copy.deepcopy(base), settings)
        draw = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "mora_M" in name:
                parameter.data.normal_(std=0.05, generator=draw)
                squares.setdefault(kind, []).append(parameter.detach().double().numpy())
        found[kind] = counted(model, base)["q_proj"]
    q = 8  # sqrt(32 + 32)
    stretch = 32 / q  # sqrt(n m)
    own = [np.linalg.svd(M, compute_uv=False) for M in squares["sharing"]]
    assert found["sharing"]["rank"] == found["truncate"]["rank"] == [q] * LAYERS
    assert found["sharing"]["largest"] == pytest.approx([stretch * s[0] for s in own], rel=1e-5)
    assert found["truncate"]["largest"] == pytest.approx([s[0] for s in own], rel=1e-5)
    for kind, factor in (("sharing", stretch), ("truncate", 1.0)):
        assert found[kind]["above_0.1"] == [np.sum(factor * s > 0.1) for s in own]
    assert found["sharing"]["above_0.1"] > found["truncate"]["above_0.1"]
    assert found["sharing"]["above_tenth"] == found["truncate"]["above_tenth"]
