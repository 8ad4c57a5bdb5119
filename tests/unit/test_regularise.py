"""What each regulariser does to a run, what it is refused for, and what it leaves behind."""

import dataclasses
import functools
import itertools
import math

import pytest
import torch
import yaml
from transformers import OPTConfig, OPTForCausalLM

from ablate import paths
from ablate.adapters import build
from ablate.config import grid
from ablate.config.compose import expand
from ablate.config.schema import Regulariser
from ablate.errors import UserError
from ablate.experiment import design
from ablate.experiment.identity import Memo
from ablate.streams import Streams
from ablate.training.regularisation import dropout, embedding_noise
from ablate.training.regularisation.hooks import regularised
from tests import levels, toys
from tests.regularised import (
    STRONG,
    cell,
    context_of,
    model_of,
    perturb,
    run,
    works,
)

SPLIT_FREE = tuple(name for name in STRONG if name != "attention_dropout")
NAMES = tuple(sorted(f.stem for f in (paths.conf_dir() / "regulariser").glob("*.yaml")))
LEVELS = {
    name: Regulariser(**yaml.safe_load((paths.conf_dir() / f"regulariser/{name}.yaml").read_text()))
    for name in NAMES
}
# --- settings under another name


def test_every_level_names_itself_and_asks_for_one_thing():
    plain = Regulariser()
    for name, level in LEVELS.items():
        changed = [
            f.name
            for f in dataclasses.fields(level)
            if getattr(level, f.name) != getattr(plain, f.name)
        ]
        assert changed == ([] if name == "none" else ["name", name])


def designed(*words):
    found = expand(["study=none", "masking=none", "plw=0.1", "train.lr=0.001", *words])
    plan = design.design(grid.cells(found), study="none")
    return [named for named in plan.cells if not named.cell.is_base]


ALIASES = {
    "weight_decay": "train.weight_decay=0.1",
    "label_smoothing": "loss.label_smoothing=0.1",
    "adapter_dropout": "adapter.options.dropout=0.1",
}


@pytest.mark.parametrize("name", ALIASES)
def test_equal_settings_are_one_run_by_any_name(name):
    [plain], [direct], [named] = (
        designed(*words) for words in ((), (ALIASES[name],), (f"regulariser={name}",))
    )
    assert direct.key == named.key != plain.key
    assert named.cell.regulariser.name == name
    assert named.levels == {}


def test_a_power_without_a_distance_is_no_other_run():
    [plain], [other] = designed(), designed("regulariser.minkowski_p=3")
    assert plain.key == other.key
    keys = {designed("regulariser=minkowski", f"regulariser.minkowski_p={p}")[0].key for p in "23"}
    assert len(keys | {plain.key}) == 3


def test_every_acting_level_is_a_run_of_its_own():
    words = ",".join(name for name in NAMES if name not in ALIASES)
    found = designed(f"regulariser={words}")
    assert len({named.key for named in found}) == len(found) == len(NAMES) - len(ALIASES)


def test_settling_returns_the_same_object_where_nothing_changes():
    asked = cell(regulariser=STRONG["kl"])
    assert design.resolve_cell(asked, Memo()) is asked
    memo = Memo()
    dropping = [cell(regulariser=LEVELS["adapter_dropout"]) for _ in range(2)]
    dropping[1] = dataclasses.replace(dropping[1], adapter=dropping[0].adapter)
    one, two = (design.resolve_cell(c, memo) for c in dropping)
    assert one.adapter is two.adapter
    assert one.adapter.options["dropout"] == 0.1


def test_the_base_has_no_regulariser():
    asked = cell("none", Regulariser(rank_dropout=0.5))
    assert design.resolve_cell(asked, Memo()) is asked


REFUSED = [
    ("full", {"adapter_dropout": 0.1}, "adapter_dropout=0.1: adapter=full has no dropout"),
    ("full", {"rank_dropout": 0.1}, "rank_dropout=0.1: adapter=full has no factors"),
    ("mora", {"rank_dropout": 0.1}, "rank_dropout=0.1: adapter=mora has no factors"),
    ("dora", {"minkowski": 0.1}, "minkowski=0.1: adapter=dora adds no matrix"),
    ("ia3", {"minkowski": 0.1}, "minkowski=0.1: adapter=ia3 adds no matrix"),
    ("vera", {"weight_decay": 0.1}, "weight_decay=0.1: adapter=vera trains vectors only"),
]


@pytest.mark.parametrize(("adapter", "settings", "words"), REFUSED, ids=str)
def test_what_would_not_act_is_refused_in_one_line(adapter, settings, words):
    with pytest.raises(UserError, match=f"regulariser.{words}") as raised:
        design.resolve_cell(cell(adapter, Regulariser(**settings)), Memo())
    assert "\n" not in str(raised.value)
    assert "must be" in str(raised.value)


# --- noise


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_noise_has_the_papers_law(layout):
    asked = cell()
    [work] = works(asked, toys.execution(layout=layout))
    alpha, D = 5.0, 400
    drawn = embedding_noise.noise(work, D, alpha, Streams(0).torch("neftune"))
    assert drawn.shape == (*work.ids_BL.shape, D)
    rows = drawn.flatten(0, 1).split(list(work.lengths)) if layout == "packed" else drawn
    for row, L in zip(rows, work.lengths, strict=True):
        limit = alpha / math.sqrt(L * D)
        kept = row[:L]
        assert not row[L:].any()
        assert 0.99 * limit < kept.abs().max() <= limit
        error = limit / math.sqrt(kept.numel())
        assert abs(float(kept.mean())) < 4 * error
        assert float(kept.var()) == pytest.approx(limit**2 / 3, rel=0.05)


def test_noise_does_not_depend_on_the_split_or_the_layout():
    def drawn(**changes):
        generator = Streams(0).torch("neftune")
        parts = []
        for work in works(cell(), toys.execution(**changes)):
            noise_BLD = embedding_noise.noise(work, 8, 5.0, generator)
            if work.positions_BL is None:
                parts += [row[:L] for row, L in zip(noise_BLD, work.lengths, strict=True)]
            else:
                parts.append(noise_BLD[0])
        return torch.cat(parts)

    whole = drawn()
    for changes in ({"micro_batch_size": 3}, {"layout": "packed", "micro_batch_size": 2}):
        assert torch.equal(drawn(**changes), whole)


def test_noise_of_no_size_is_no_noise(monkeypatch):
    [work] = works(cell())
    plain, _, _ = run(cell())
    assert not embedding_noise.noise(work, 8, 0.0, Streams(0).torch("neftune")).any()
    law = embedding_noise.noise
    monkeypatch.setattr(embedding_noise, "noise", lambda w, D, alpha, g: law(w, D, 0.0, g))
    assert run(cell(regulariser=STRONG["neftune"]))[0] == plain


# --- dropout


def test_a_rank_mask_keeps_the_mean():
    share, generator = 0.3, Streams(0).torch("rank_dropout")
    masks = torch.stack([dropout.rank_mask(8, share, generator) for _ in range(5000)])
    assert set(masks.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.7)}
    error = math.sqrt(share / (1 - share) / len(masks))
    assert (masks.mean(0) - 1).abs().max() < 4 * error
    together = torch.corrcoef(masks.T) - torch.eye(8)
    assert together.abs().max() < 5 / math.sqrt(len(masks))


def test_a_rank_mask_stands_between_the_factors_and_is_new_at_each_step():
    asked = cell("lora", STRONG["rank_dropout"])
    model = perturb(model_of(asked)).train()
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(3, A.shape[1], generator=torch.Generator().manual_seed(0)).double()
    base = layer.base_layer(x)
    seen = []
    with regularised(model, asked, streams=Streams(0)) as held:
        for _ in range(6):
            change = (layer(x) - base) / layer.scaling["default"]
            assert torch.equal(layer(x), layer(x))  # one mask for all micro-batches of a step
            for kept in itertools.product((0, 1 / 0.6), repeat=len(A)):
                mask = torch.tensor(kept, dtype=torch.float64)
                if torch.allclose(change, (x @ A.T * mask) @ B.T, rtol=1e-5, atol=1e-7):
                    seen.append(kept)
                    break
            held.after_step(context_of(model, works(asked)[0]))
    assert len(seen) == 6
    assert len(set(seen)) > 1


def test_rank_dropout_acts_on_velora_while_it_trains():
    """While it keeps a graph VeLoRA does not call A, but takes its weight."""
    plain, dropping = (
        run(cell("velora", one), base=levels.base("llama"))[0]
        for one in (None, STRONG["rank_dropout"])
    )
    assert dropping != plain


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_attention_dropout_is_the_models_own(architecture):
    asked = cell("lora", STRONG["attention_dropout"])
    model = levels.applied(asked, architecture)
    places = dropout.dropout_settings(model)
    before = [getattr(holder, name) for holder, name in places]
    with regularised(model, asked, streams=Streams(0)):
        assert [getattr(holder, name) for holder, name in places] == [0.2, 0.2]
        assert not any(module.training for module in model.modules())
    assert [getattr(holder, name) for holder, name in places] == before


def test_attention_dropout_by_other_names():
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32, "vocab_size": 37}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    model = OPTForCausalLM(OPTConfig(**sizes, **shape)).eval()
    asked = cell("full", STRONG["attention_dropout"])
    with regularised(model, asked, streams=Streams(0)):
        layer = model.model.decoder.layers[0]
        assert layer.self_attn.dropout == 0.2
        assert layer.dropout == 0.1  # of what is added to the residual stream


def test_attention_without_dropout_is_refused():
    asked = cell("lora", STRONG["attention_dropout"])
    model = model_of(asked)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            del module.attention_dropout
    with (
        pytest.raises(UserError, match=r"attention_dropout=0.2: the attention of model=m has no"),
        regularised(model, asked, streams=Streams(0)),
    ):
        pass


def test_a_dropout_that_nothing_reads_is_refused(monkeypatch):
    asked = cell("lora", STRONG["attention_dropout"])
    model = model_of(asked)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            forward = module.forward

            def without(*args, forward=forward, module=module, **kwargs):
                mode, module.training = module.training, False
                try:
                    return forward(*args, **kwargs)
                finally:
                    module.training = mode

            module.forward = without
    with (
        pytest.raises(UserError, match="attention_dropout"),
        regularised(model, asked, streams=Streams(0)),
    ):
        pass


# --- runs


@functools.cache
def plain_run(adapter):
    return run(cell(adapter))[0]


CASES = [
    (adapter, name)
    for adapter in ("lora", "full")
    for name in STRONG
    if (adapter, name) != ("full", "rank_dropout")
]


@pytest.mark.parametrize(("adapter", "name"), CASES, ids=str)
def test_every_regulariser_changes_the_run_and_a_seed_repeats_it(adapter, name):
    asked = cell(adapter, STRONG[name])
    losses, weights, _ = run(asked)
    again, same, _ = run(asked)
    assert losses == again
    assert all(torch.equal(w, same[n]) for n, w in weights.items())
    assert losses != plain_run(adapter)
    assert all(math.isfinite(loss) for loss in losses)
    if name in ("neftune", "rank_dropout", "attention_dropout"):
        assert run(asked, seed=1)[0][-1] != losses[-1]


@pytest.mark.parametrize(
    ("adapter", "name"), [case for case in CASES if case[1] in SPLIT_FREE], ids=str
)
def test_the_split_of_a_step_and_its_layout_change_nothing(adapter, name):
    asked = cell(adapter, STRONG[name])
    losses, weights, _ = run(asked)
    for changes in ({"micro_batch_size": 2}, {"micro_batch_size": 4, "layout": "packed"}):
        other, found, _ = run(asked, **changes)
        assert other == pytest.approx(losses, rel=1e-6)
        for n, w in weights.items():
            torch.testing.assert_close(found[n], w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("adapter", "name"), CASES, ids=str)
def test_nothing_acts_in_evaluation_mode(adapter, name):
    asked = cell(adapter, STRONG[name])
    model = perturb(model_of(asked))
    clean = levels.logits(model)
    with regularised(model, asked, streams=Streams(0)) as held:
        held.before_forward(context_of(model, works(asked)[0]))
        assert torch.equal(levels.logits(model), clean)


@pytest.mark.parametrize(("adapter", "name"), CASES, ids=str)
def test_a_score_sees_the_clean_model(adapter, name):
    asked = cell(adapter, STRONG[name])
    _, weights, model = run(asked)
    fresh = model_of(cell(adapter))
    with torch.no_grad():
        for n, p in build.trained(fresh).items():
            p.copy_(weights[n])
    assert torch.equal(levels.logits(fresh), levels.logits(model))
    kept, wanted = (
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in one.modules()]
        for one in (model, fresh)
    )
    assert kept == wanted


def test_regularisers_add_up():
    both = Regulariser(kl=0.5, minkowski=0.5, neftune=5.0)
    assert run(cell(regulariser=both))[0] != run(cell(regulariser=Regulariser(kl=0.5)))[0]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("rank_dropout", 1.0), ("kl", -0.1), ("minkowski_p", 0.5), ("neftune", -1.0)],
)
def test_settings_out_of_range(setting, value):
    with pytest.raises(UserError, match=f"regulariser.{setting}={value}: must be"):
        Regulariser(**{setting: value})
