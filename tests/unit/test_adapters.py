"""Every level of adapter, init and optimizer on a tiny grouped-query Llama.

A level joins by being a file (`tests.levels`); nothing below names one unless it is about it. The
same on GPT-2, reloading, merging and virtual tokens are in tests/slow/test_levels.py.
"""

import dataclasses
import json
import warnings

import pytest
import torch
from peft import PeftModel
from peft.tuners.boft.layer import BOFTLayer
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ablate.adapters import build, peft_compat, registry, start, weights
from ablate.adapters.optimizers import OPTIMIZERS
from ablate.adapters.stored import weights_bytes
from ablate.config import schema
from ablate.errors import UserError
from ablate.models import files as model_files
from ablate.streams import Streams
from tests import levels
from tests.levels import ADAPTING, LEVELS, adapter, applied, base, cell, logits, sizes

SUBJECTS = levels.cases("llama")
ROUNDING = 1e-5  # float32; reflections that undo each other are off by 1e-6


def row_of(name: str):
    return registry.method(levels.SUBJECTS[name].adapter)


def same(one: Tensor, other: Tensor, atol: float = ROUNDING) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


# --- every level


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_complete_and_legal(level):
    chosen = adapter(level)
    assert chosen.name == level
    assert set(chosen.options) == set(registry.KINDS[chosen.kind].options)
    registry.check(cell(level), sizes("llama").linear_shapes)
    path = levels.paths.conf_dir() / "adapter" / f"{level}.yaml"
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("group", ["init", "optimizer"])
def test_level_of_another_factor_is_complete(group):
    for level in levels.files(group):
        assert levels.read(group, level)["name"] == level
        path = levels.paths.conf_dir() / group / f"{level}.yaml"
        assert path.read_text().startswith("# ")


def test_every_level_is_asked_about_but_those_that_need_a_gpu():
    asked = {name for name, _ in SUBJECTS}
    on_a_gpu = {f"optimizer={kind}" for kind, row in OPTIMIZERS.items() if row.bitsandbytes}
    assert set(levels.SUBJECTS) - asked == {"init=loftq"} | on_a_gpu  # 4-bit weights
    assert len(asked) >= 40


def test_every_kind_has_a_level():
    assert {adapter(level).kind for level in LEVELS} == set(registry.KINDS)


@pytest.mark.parametrize(("name", "architecture"), SUBJECTS)
def test_starts_at_the_base_or_where_it_says(name, architecture):
    run = levels.run(name, architecture)
    if start.at_base(levels.SUBJECTS[name]):
        same(run.start, run.base)
    else:
        assert (run.start - run.base).abs().max() > 10 * ROUNDING


@pytest.mark.parametrize(("name", "architecture"), SUBJECTS)
def test_what_is_declared_trainable_changes_and_nothing_else(name, architecture):
    run = levels.run(name, architecture)
    assert run.moved == (set() if name in levels.STILL else run.declared)
    assert bool(run.declared) == (name != "none")


@pytest.mark.parametrize(("name", "architecture"), SUBJECTS)
def test_loss_falls_and_the_outputs_follow(name, architecture):
    run = levels.run(name, architecture)
    if name in levels.STILL:
        same(run.tuned, run.base, 0)
    else:
        assert run.losses[-1] < run.losses[0] - 0.02
        assert (run.tuned - run.start).abs().max() > 1e-2


@pytest.mark.parametrize(("name", "architecture"), SUBJECTS)
def test_trained_parameters_equal_the_closed_form(name, architecture):
    stated = registry.trainable_parameters(levels.SUBJECTS[name], sizes(architecture))
    assert levels.run(name, architecture).counted == stated


def test_no_two_levels_train_alike():
    """Over all steps: the first restart, pruning or freezing is among them."""
    seen: dict[tuple[float, ...], str] = {}
    for name, architecture in SUBJECTS:
        trace = tuple(levels.run(name, architecture).losses)
        assert trace not in seen, f"{name} trains as {seen.get(trace)} does"
        seen[trace] = name


@pytest.mark.parametrize("level", ADAPTING)
def test_building_draws_nothing_global_and_keeps_the_mode(level):
    before = torch.random.get_rng_state()
    assert not applied(cell(level)).training
    assert torch.equal(torch.random.get_rng_state(), before)


SEEDED = [level for level in ADAPTING if row_of(level).seed]


def set_alike(module: nn.Module) -> nn.Module:
    """Give every trained tensor the same values in every model, so that the frozen ones tell."""
    with torch.no_grad():
        for parameter in build.trained(module).values():
            parameter.copy_(torch.arange(parameter.numel()).sin().view_as(parameter) / 10)
    return module


@pytest.mark.parametrize("level", SEEDED)
def test_what_is_drawn_and_never_trained_follows_the_seed(level):
    one, again, other = (logits(set_alike(applied(cell(level, seed=s)))) for s in (0, 0, 1))
    same(one, again, 0)
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", levels.ARCHITECTURES)
def test_the_planner_reads_from_files_what_is_true_in_memory(architecture, tmp_path):
    base(architecture).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    asked = schema.Model(name="m", source="local", path=str(tmp_path))
    files, live = model_files.resolve(asked), sizes(architecture)
    for field in dataclasses.fields(live):
        assert getattr(files, field.name) == getattr(live, field.name)


# --- what is written


def test_saved_file_holds_the_trained_weights_under_pefts_names(tmp_path):
    module = applied(cell("mora", embeddings="trained"))
    weights.save(module, tmp_path / "new" / "folder", base="owner/name")
    stored = load_file(tmp_path / "new" / "folder" / "adapter_model.safetensors")
    assert {n.replace(".default", "") for n in build.trained(module)} == set(stored)
    config = json.loads((tmp_path / "new" / "folder" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("MORA", "owner/name")


SAVED = [(n, a) for n, a in SUBJECTS if n != "none"]


@pytest.mark.parametrize(("name", "architecture"), SAVED)
def test_the_size_that_is_stated_before_a_sweep_is_that_of_the_file(name, architecture):
    asked = levels.SUBJECTS[name]
    restarts = asked.adapter.kind in ("relora", "remora")  # what they sum up is empty before
    module = levels.run(name, architecture).module if restarts else applied(asked, architecture)
    found = weights.tensors(module) if row_of(name).adapts else dict(module.named_parameters())
    written = sum(t.numel() * t.element_size() for t in found.values())
    stated = weights_bytes(asked, sizes(architecture))
    assert written <= 1.4 * stated  # GLoRA's unused paths are zeros of the size of biases
    assert written >= 0.65 * stated or name == "p_tuning"  # whose network is not needed any more


@pytest.mark.parametrize(("name", "architecture"), SAVED)
def test_saved_weights_are_read_by_peft_and_by_transformers(name, architecture, tmp_path):
    """On the untouched base, whatever a start did to it; and by this project to the last bit."""
    run, asked = levels.run(name, architecture), levels.SUBJECTS[name]
    weights.save(run.module, tmp_path)
    if row_of(name).adapts:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
            warnings.filterwarnings("ignore", message=row_of(name).quiet or "-")
            other = PeftModel.from_pretrained(base(architecture), str(tmp_path))
        own = weights.load(base(architecture), tmp_path, asked, streams=Streams(9))
        with own.disable_adapter():
            same(logits(own), run.base)
    else:
        other = AutoModelForCausalLM.from_pretrained(tmp_path)
        own = weights.load(base(architecture), tmp_path, asked, streams=Streams(9))
    size = float(run.tuned.abs().max())
    same(logits(other), run.tuned, ROUNDING * size)
    same(logits(own), run.tuned, ROUNDING * size)


def test_missing_weights_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no trained weights"):
        weights.load(base("llama"), tmp_path, cell("lora"), streams=Streams(0))


# --- placement


def adapted(level: str, architecture: str = "llama", **placement) -> set[str]:
    """The names of the matrices that an applied level really changes."""
    asked = cell(level, placement=schema.Placement(name="p", **placement))
    module = applied(asked, architecture)
    layers = [n for n, m in module.named_modules() if hasattr(m, "merged_adapters")]
    return {name.removeprefix("base_model.model.") for name in layers}


@pytest.mark.parametrize(
    ("placement", "kept"),
    [
        ({"modules": "all"}, lambda n: True),
        ({"modules": "attention"}, lambda n: "self_attn" in n),
        ({"modules": "mlp"}, lambda n: "mlp" in n),
        ({"modules": ("v_proj", "mlp.down_proj")}, lambda n: n.endswith(("v_proj", "down_proj"))),
        ({"layers": (-1,)}, lambda n: "layers.1." in n),
        ({"modules": "mlp", "layers": (0,)}, lambda n: "layers.0.mlp" in n),
    ],
)
def test_a_level_changes_the_matrices_that_are_placed(placement, kept):
    every = sizes("llama").linear_shapes
    assert adapted("lora", **placement) == {n for n in every if kept(n)}


@pytest.mark.parametrize(
    ("architecture", "ends"),
    [("llama", ("k_proj", "v_proj", "down_proj")), ("gpt2", ("c_attn", "mlp.c_proj"))],
)
def test_ia3_scales_keys_values_and_what_enters_the_second_inner_matrix(architecture, ends):
    assert all(name.endswith(ends) for name in adapted("ia3", architecture))
    asked = cell("ia3")
    vectors = build.trained(applied(asked, architecture))
    inner = [n for n, p in vectors.items() if p.shape[0] == 1]
    assert inner
    assert all("mlp" in name for name in inner)


# --- LoRA's start and scale


def factors(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (m.lora_A["default"].weight.detach(), m.lora_B["default"].weight.detach())
        for name, m in module.named_modules()
        if isinstance(m, LoraLayer)
    }


@pytest.mark.parametrize("level", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_rows_are_nested_over_the_rank(level, architecture):
    small = factors(applied(cell(level, rank=4), architecture))
    large = factors(applied(cell(level, rank=16), architecture))
    assert len(small) == len(large) == (14 if architecture == "llama" else 8)
    for name, (A, B) in small.items():
        assert torch.equal(A, large[name][0][:4])
        assert len({tuple(row.tolist()) for row in large[name][0]}) == 16
        assert not B.any()


def test_lora_draws_depend_on_seed_and_module_alone():
    first = factors(applied(cell("lora")))
    again, dora = factors(applied(cell("lora"))), factors(applied(cell("dora")))
    other = factors(applied(cell("lora", seed=1)))
    placement = schema.Placement(name="p", modules=("v_proj", "mlp.down_proj"))
    some = factors(applied(cell("lora", placement=placement)))
    assert len(some) == 4
    for name, (A, _) in first.items():
        assert torch.equal(A, again[name][0])
        assert torch.equal(A, dora[name][0])
        assert not torch.equal(A, other[name][0])
        assert name not in some or torch.equal(A, some[name][0])
    rows = torch.cat([A[:, :32].flatten(1) for A, _ in first.values()])
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)  # no two modules share a draw


def test_lora_draws_follow_pefts_law():
    name = "base_model.model.model.layers.0.mlp.down_proj"
    A = factors(applied(cell("lora", rank=16)))[name][0]
    bound = 44**-0.5  # kaiming_uniform(a = sqrt 5): U(-1 / sqrt k, 1 / sqrt k)
    assert A.abs().max() < bound
    assert A.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # 704 draws: 1.7 % in sd


@pytest.mark.parametrize(
    ("level", "rank", "scale"),
    [("lora", 1, 2.0), ("lora", 16, 2.0), ("rslora", 4, 4.0), ("rslora", 16, 2.0)],
)
def test_lora_scale(level, rank, scale):
    asked = cell(level, rank=rank)
    layer = next(m for m in applied(asked).modules() if isinstance(m, LoraLayer))
    layer.lora_B["default"].weight.data.fill_(0.5)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer.get_delta_weight("default"), scale * B @ A)
    assert registry.capacity(asked, sizes("llama").linear_shapes)["scale"] == scale


def test_apply_refuses_a_rank_above_a_live_matrix():
    with pytest.raises(UserError, match=r"rank=17: must be at most 16, .*k_proj \(16 x 32\)"):
        applied(cell("lora", rank=17))


# --- what PEFT does not do as it comes


def test_boft_has_its_butterfly_factors_and_rotates():
    module = set_alike(applied(cell("boft")))
    layers = [m for m in module.modules() if isinstance(m, BOFTLayer)]
    assert len(layers) == 14
    for layer in layers:
        assert layer.boft_R["default"].shape[0] == 2
        rotation_KK, _ = layer.get_delta_weight("default")
        eye_KK = torch.eye(len(rotation_KK))
        same(rotation_KK @ rotation_KK.T, eye_KK)
        block = layer.boft_block_size["default"]
        outside = rotation_KK - torch.block_diag(
            *(rotation_KK[i : i + block, i : i + block] for i in range(0, len(eye_KK), block))
        )
        assert outside.abs().max() > 1e-3  # one factor would leave this empty


def test_blocks_on_a_diagonal_have_the_gradient_of_blocks_on_a_diagonal():
    blocks = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    blocks = blocks.double().requires_grad_()
    placed = torch.zeros(2, 12, 12, dtype=torch.float64)
    for n in range(2):
        for d in range(3):
            placed[n, 4 * d : 4 * d + 4, 4 * d : 4 * d + 4] = blocks[n, d]
    weight = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(1)).double()
    (placed * weight).sum().backward()
    assert torch.equal(peft_compat.BlockDiagonal.forward(blocks)[0], placed)
    assert torch.equal(peft_compat.BlockDiagonal.backward(weight, blocks)[0], blocks.grad)


# --- weight decay


def decayed(asked: schema.Cell) -> tuple[Tensor, Tensor]:
    """Return how far a cell is from its base after decay alone, and how far it was at its start."""
    train = dataclasses.replace(asked.train, lr=0.1, weight_decay=1.0)
    asked = dataclasses.replace(asked, train=train)
    module, before = applied(asked), logits(base("llama"))
    start = logits(module)
    levels.fit(module, asked, still=True)
    return (logits(module) - before).abs().max(), (start - before).abs().max()


DECAYED = [(n, a) for n, a in SUBJECTS if n != "none"]


@pytest.mark.parametrize(("name", "architecture"), DECAYED)
def test_decay_alone_moves_no_adapter_away_from_the_base(name, architecture):
    """In the real loop, every gradient set to zero: all that acts is lr x decay = 0.1 a step."""
    away, at_first = decayed(levels.SUBJECTS[name])
    if name == "full":  # ordinary decay, of the weights themselves
        assert away > 0.1
    else:
        assert away <= at_first + ROUNDING


@pytest.mark.parametrize("optimizer", ["lora_plus", "lora_fa", "riemannian"])
def test_decay_is_from_the_start_under_every_optimizer(optimizer):
    asked = levels.SUBJECTS[f"optimizer={optimizer}"]
    start = schema.Init(name="pissa", kind="pissa")
    away, _ = decayed(dataclasses.replace(asked, init=start))
    assert away <= ROUNDING
