"""Combinations of adapter, init, optimizer and base precision that are refused, and why."""

import dataclasses
import importlib.util

import pytest
import torch
from peft.tuners.lora import LoraLayer

from ablate.adapters import build, compatibility, registry, weights
from ablate.adapters.init.spec import INITS, init_of
from ablate.adapters.method import load_attribute
from ablate.adapters.optimizers import OPTIMIZERS
from ablate.config import schema
from ablate.errors import UserError
from ablate.experiment.notes import notes
from ablate.experiment.request import check_machine, plan_grid
from ablate.models import files
from ablate.models.load import load
from ablate.models.packed import keeps_packed_apart
from tests import levels, toys
from tests.levels import ADAPTING, adapter, cell

SHAPES = {"layers.0.q_proj": (64, 64), "layers.0.k_proj": (16, 64), "layers.0.up_proj": (170, 64)}
LLAMA, GPT2 = "LlamaForCausalLM", "GPT2LMHeadModel"
GPU = schema.Execution(device="cuda")


def init(level: str, **options) -> schema.Init:
    tree = levels.read("init", level)
    return schema.Init(**tree | {"options": tree["options"] | options})


def refused(said: str, asked: schema.Cell, architecture: str = LLAMA) -> None:
    with pytest.raises(UserError, match=said) as raised:
        compatibility.check(asked, architecture=architecture, shapes=SHAPES)
    assert "\n" not in str(raised.value)


def allowed(asked: schema.Cell, architecture: str = LLAMA) -> None:
    compatibility.check(asked, architecture=architecture, shapes=SHAPES)


# --- init


@pytest.mark.parametrize("level", ["mora", "kasa", "mica", "adalora", "vera", "full"])
def test_starts_of_lora_are_refused_elsewhere(level):
    for start in ("gaussian", "pissa", "eva", "lora_ga"):
        refused(
            f"^init={start}: adapter={level} does not support it", cell(level, init=init(start))
        )


def test_ranks_that_a_start_cannot_have():
    refused(
        "^rank=3: init=orthogonal needs an even rank", cell("lora", rank=3, init=init("orthogonal"))
    )
    allowed(cell("lora", rank=16, init=init("orthogonal")))
    refused(
        r"^rank=9: init=lora_ga needs a rank of at most 8 for layers.0.k_proj \(16 x 64\)",
        cell("lora", rank=9, init=init("lora_ga")),
    )
    allowed(cell("lora", rank=8, init=init("lora_ga")))
    small = {"down": (64, 24)}
    with pytest.raises(UserError, match=r"rank=13: init=eva needs a rank of at most 12 for down"):
        compatibility.check(
            cell("lora", rank=13, init=init("eva")), architecture=LLAMA, shapes=small
        )


def test_only_adapted_matrices_limit_the_rank():
    part = schema.Placement(name="q", modules=("q_proj",))
    allowed(cell("lora", rank=32, init=init("lora_ga"), placement=part))


def test_starts_that_are_wrong_on_gpt2_are_refused_there():
    for level in ("olora", "lora_ga"):
        refused(f"init={level}: does not support GPT-2", cell("lora", init=init(level)), GPT2)
    for level in ("pissa", "corda", "orthogonal"):
        allowed(cell("lora", init=init(level)), GPT2)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (schema.Init(kind="pisa"), "init.kind=pisa.*Did you mean 'pissa'"),
        (init("eva", batches=0), "init.options.batches=0: must be a whole number of at least 1"),
        (init("eva", converged=1.5), r"init.options.converged=1.5: must be a number in \(0, 1\]"),
        (init("pissa", iterations=0), "init.options.iterations=0: must be a positive whole"),
        (init("lora_ga", direction="AB"), "init.options.direction=AB: must be one of ArB2r"),
        (schema.Init(kind="olora", options={"rank": 2}), "olora has no such option, only none"),
    ],
)
def test_bad_inits_are_one_line(asked, said):
    refused(said, cell("lora", init=asked))


def test_options_that_are_left_out_are_the_default():
    told = init_of(cell("lora", init=schema.Init(kind="lora_ga", options={"gamma": 16})))
    full = init_of(cell("lora", init=init("lora_ga")))
    assert told == full
    assert isinstance(told[1]["gamma"], float)


# --- what only some data have


def test_alora_needs_a_template():
    data = schema.Dataset(name="d", source="local", path="x", template="plain")
    refused(
        "adapter=alora: is active from .* dataset.template=plain has none",
        cell("alora", dataset=data),
    )
    text = dataclasses.replace(data, template="alpaca", format="text")
    refused(
        "adapter=alora: is active from .* dataset.format=text has none", cell("alora", dataset=text)
    )


def test_alora_is_never_packed():
    refused("execution.layout=packed", cell("alora", execution=schema.Execution(layout="packed")))
    assert not keeps_packed_apart(levels.run("alora", "llama").module)
    assert keeps_packed_apart(levels.run("lora", "llama").module)


# --- base precision

# Run on a 4-bit base: what fails there, and what PEFT makes a plain LoRA of in silence.
NO_4_BIT = ("kasa", "mica", "velora")
ON_4_BIT = ("lora", "rslora", "dora", "adalora", "alora")


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_adapters_on_quantised_weights(precision):
    for level in ON_4_BIT:
        allowed(cell(level, base_precision=precision, execution=GPU))
    for level in NO_4_BIT:
        asked = cell(level, base_precision=precision, execution=GPU)
        refused(f"base_precision={precision}: adapter={level} does not support", asked)


def test_inits_on_quantised_weights():
    for level in ("orthogonal", "pissa", "olora", "corda", "lora_ga"):
        asked = cell("lora", init=init(level), base_precision="nf4", execution=GPU)
        refused(f"base_precision=nf4: not with init={level}", asked)
    refused(
        "base_precision=fp32: not with init=loftq; with it base_precision must be nf4",
        cell("lora", init=init("loftq")),
    )
    allowed(cell("lora", init=init("loftq"), base_precision="nf4", execution=GPU))


def installed(monkeypatch, spec, *, driver):
    """Let bitsandbytes be installed or not, and the driver of a GPU be there or not."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: spec if n == "bitsandbytes" else real(n, *a)
    )
    monkeypatch.setattr(compatibility, "has_driver", lambda: driver)


@pytest.mark.parametrize(
    ("setting", "others"),
    [("base_precision=nf4", "fp32 or bf16"), ("optimizer=paged_adamw", "adamw or adamw_8bit")],
)
def test_what_bitsandbytes_computes_is_planned_anywhere_and_needs_it_to_run(
    setting, others, monkeypatch
):
    asked = [setting, "adapter=lora", "train.lr=0.01"]
    with pytest.raises(UserError, match=f"{setting}: needs a GPU, and execution.device=cpu; use"):
        plan_grid([*asked, "execution.device=cpu"])
    installed(monkeypatch, None, driver=False)
    cells = [named.cell for named in plan_grid(asked).design.cells]
    named = plan_grid(asked).design.cells
    told = f"{setting}: needs bitsandbytes, which is not installed here; pip"
    assert [line for line in notes(named) if line.startswith(told)]
    with pytest.raises(UserError, match=told):
        check_machine(cells)
    installed(monkeypatch, importlib.util.find_spec("json"), driver=False)
    with pytest.raises(UserError, match=f"{setting}: needs a GPU, and there is none here"):
        check_machine(cells)
    installed(monkeypatch, importlib.util.find_spec("json"), driver=True)
    check_machine(cells)
    assert not [line for line in notes(named) if "needs" in line]


def test_a_base_needs_bitsandbytes_for_its_weights_alone():
    paged = schema.Optimizer(name="paged_adamw", kind="paged_adamw")
    assert not compatibility.bitsandbytes_for(cell("none", optimizer=paged))
    assert compatibility.bitsandbytes_for(cell("none", base_precision="int8"))


def test_optimizers_of_bitsandbytes_refuse_a_model_on_a_cpu():
    with pytest.raises(UserError, match="PagedAdamW32bit needs a GPU, and the run is on cpu"):
        load_attribute(OPTIMIZERS["paged_adamw"].make)(
            levels.base("llama"), toys.train_settings(), {}
        )


def test_what_rounds_at_random_is_not_offloaded():
    lines = ["train.lr=0.01", "adapter=full", "optimizer=adamw,adamw_8bit"]
    with pytest.raises(UserError, match="offload_optimizer=true: not with optimizer=adamw_8bit"):
        plan_grid([*lines, "execution.offload_optimizer=true"])
    plan_grid(lines)


CUDA = torch.device("cuda")
MICRO = files.resolve(schema.Model(name="m", source="micro", path="micro_0"))


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_without_a_gpu_a_quantised_base_is_not_read(precision):
    with pytest.raises(UserError, match=f"base_precision={precision}: needs a GPU, and the run"):
        load(MICRO, precision, device=torch.device("cpu"))


def test_a_base_in_16_bits_has_adapters_in_32():
    asked = cell("lora", base_precision="bf16")
    model = load(MICRO, "bf16")
    positions = [b.dtype for name, b in model.named_buffers() if "inv_freq" in name]
    assert positions
    assert set(positions) == {torch.float32}  # positions in 16 bits would be other positions
    module = build.apply(model, asked, streams=levels.Streams(0))
    assert {p.dtype for p in build.trained(module).values()} == {torch.float32}
    assert {p.dtype for p in module.parameters() if not p.requires_grad} == {torch.bfloat16}
    ids = torch.arange(40)[None]
    with torch.no_grad():
        near, exact = (m(input_ids=ids).logits.float() for m in (module, load(MICRO)))
    assert 0 < (near - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_matrix_that_adalora_leaves_at_rank_0_is_saved_without_a_warning():
    module = build.apply(toys.llama(torch.float32), cell("adalora"), streams=levels.Streams(0))
    layer = next(m for m in module.modules() if hasattr(m, "lora_E"))
    for name, shape in (("lora_A", (0, 16)), ("lora_B", (16, 0)), ("lora_E", (0, 1))):
        getattr(layer, name)["default"] = torch.nn.Parameter(torch.zeros(shape))
    assert any(0 in tensor.shape for tensor in weights.tensors(module).values())


def test_an_adapter_trains_on_16_bits_and_is_loaded_as_it_was(tmp_path):
    for level, start in (("lora", "default"), ("lora", "pissa"), ("kasa", "default")):
        asked = cell(level, init=init(start), base_precision="bf16")
        folder = tmp_path / f"{level}-{start}"
        module = build.apply(
            levels.base("llama").to(torch.bfloat16), asked, streams=levels.Streams(0)
        )
        losses = levels.fit(module, asked)
        assert losses[-1] < losses[0] - 0.1
        weights.save(module, folder)
        base = levels.base("llama").to(torch.bfloat16)
        loaded = weights.load(base, folder, asked, streams=levels.Streams(0))
        torch.testing.assert_close(levels.logits(loaded), levels.logits(module), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:inner dimension")  # 176 is no multiple of 64, and so slower
@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("level", ["lora", "dora", "adalora"])
def test_an_adapter_trains_on_a_quantised_base(level, precision, tmp_path):
    pytest.importorskip("bitsandbytes")
    asked = cell(level, base_precision=precision, execution=GPU)

    def base():
        return load(MICRO, precision, device=torch.device("cuda"))

    module = build.apply(base(), asked, streams=levels.Streams(0), data=levels.DATA)
    losses = levels.fit(module, asked)
    assert losses[-1] < losses[0]
    weights.save(module, tmp_path)
    loaded = weights.load(base(), tmp_path, asked, streams=levels.Streams(0))
    ids = levels.tokens().cuda()
    with torch.no_grad():
        one, other = (m(input_ids=ids).logits for m in (module.eval(), loaded.eval()))
    torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:inner dimension")
def test_loftq_makes_up_for_a_part_of_the_quantisation():
    """What is left of a weight's error is what the best matrix of rank 16 leaves (Eckart, Young).

    Logits of a micro model may move either way.
    """
    bnb = pytest.importorskip("bitsandbytes")
    exact = dict(load(MICRO).named_parameters())
    asked = cell("lora", rank=16, init=init("loftq"), base_precision="nf4", execution=GPU)
    module = build.apply(load(MICRO, "nf4", device=CUDA), asked, streams=levels.Streams(0))
    found = [(n, m) for n, m in module.named_modules() if isinstance(m, LoraLayer)]
    assert len(found) > 20
    for name, layer in found:
        weight = layer.get_base_layer().weight
        kept = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).float()
        lost = exact[f"{name.removeprefix('base_model.model.')}.weight"].cuda() - kept
        left = torch.linalg.svdvals(lost)[16:].norm()
        found_left = (lost - layer.get_delta_weight("default")).norm()
        torch.testing.assert_close(found_left, left, rtol=1e-3, atol=0)


# --- the tables


def test_every_kind_has_a_level_and_code_that_exists():
    for group, rows in (("init", INITS), ("optimizer", OPTIMIZERS)):
        trees = [levels.read(group, level) for level in levels.files(group)]
        assert {tree["kind"] for tree in trees} == set(rows)
        for tree in trees:
            assert set(tree["options"]) == set(rows[tree["kind"]].options)
    named = [row.steps for row in INITS.values()] + [row.make for row in OPTIMIZERS.values()]
    for kind in {adapter(level).kind for level in ADAPTING}:
        row = registry.KINDS[kind]
        assert set(row.inits) <= set(INITS)
        assert set(row.optimizers) <= set(OPTIMIZERS)
        named += [row.start, row.hooks, row.config_from_data]
    assert all(load_attribute(name) is not None for name in named if name)


def test_the_plan_refuses_before_anything_is_trained():
    with pytest.raises(UserError, match="init=orthogonal needs an even rank"):
        plan_grid(["init=orthogonal", "rank=3", "train.lr=0.01"])
    with pytest.raises(UserError, match="optimizer=lora_fa: adapter=mora does not support it"):
        plan_grid(["optimizer=lora_fa", "adapter=mora", "train.lr=0.01"])


def test_a_base_in_another_precision_is_another_run():
    keys = {
        named.identity.train_key
        for adapter_ in ("none", "lora")
        for precision in ("fp32", "bf16")
        for named in plan_grid(
            [f"adapter={adapter_}", f"base_precision={precision}", "train.lr=0.01"]
        ).design.cells
    }
    assert len(keys) == 4
