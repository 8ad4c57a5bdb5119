"""On a GPU with little memory: 16-bit and quantised bases, small optimizers, masters on the CPU."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ablate.adapters import build
from ablate.adapters.optimizers import OPTIMIZERS, maker
from ablate.config import schema
from ablate.models import load
from ablate.training import masters, optim
from tests import levels, regularised, toys
from tests.eight_bits import beside_the_peer
from tests.levels import cell

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CUDA = torch.device("cuda")
GPU = schema.Execution(device="cuda")
BNB = [kind for kind, row in OPTIMIZERS.items() if row.bitsandbytes]


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().float().reshape(-1).cpu() for p in optim.trainable(module)])


def trained(
    level: str, *, dtype: torch.dtype, offload: bool = False, kind: str = "adamw", **settings
) -> tuple[Tensor, Tensor, list[float]]:
    """Weights before and after 20 steps on the GPU, and the losses; the start is that of bf16."""
    asked = cell(
        level,
        base_precision="bf16" if dtype == torch.bfloat16 else "fp32",
        embeddings="trained",
        optimizer=schema.Optimizer(name=kind, kind=kind),
        execution=dataclasses.replace(GPU, offload_optimizer=offload),
    )
    settings = {"lr": 2e-5, "precision": "bf16", "clip": None, "max_steps": 20} | settings
    asked = dataclasses.replace(
        asked, train=toys.train_settings(batch_size=7, schedule="constant", **settings)
    )
    base = levels.base("llama").to(torch.bfloat16).to(dtype).to(CUDA)
    module = build.apply(base, asked, streams=levels.Streams(0))
    before = flat(module)
    losses = levels.fit(module, asked)
    return before, flat(module), losses


@pytest.mark.parametrize("level", ["full", "lora"])
def test_all_entries_of_a_16_bit_base_move(level):
    start, exact, _ = trained(level, dtype=torch.float32)
    same, half, _ = trained(level, dtype=torch.bfloat16)
    assert torch.equal(start, same)
    rounded = exact.bfloat16().float() if level == "full" else exact
    spacing = 2.0 ** (torch.frexp(rounded)[1].float() - 8)
    near = (half - exact).abs() <= 0.5 * spacing + 0.05 * 2e-5 * 20
    assert near.float().mean() > 0.95
    moved, expected = (float((x != start).float().mean()) for x in (half, exact.bfloat16().float()))
    assert moved > expected - 0.02


@pytest.mark.parametrize("level", ["full", *levels.ADAPTING])
def test_what_trains_on_a_gpu_is_what_trains_on_a_cpu(level):
    asked = cell(level, execution=GPU)
    names = []
    for device in ("cpu", "cuda"):
        base = levels.base("llama").to(device)
        module = build.apply(base, asked, streams=levels.Streams(0), data=levels.DATA)
        assert {p.device.type for p in module.parameters()} == {device}
        names.append(list(build.trained(module)))
    assert names[0] == names[1]


def test_rounding_at_random_adds_small_steps_up():
    start, exact, _ = trained("full", dtype=torch.float32)
    _, half, _ = trained("full", dtype=torch.bfloat16, kind="adamw_8bit")
    course = exact - start
    assert float((half - start) @ course / (course @ course)) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_offloaded_adamw_is_adamw(dtype):
    start, here, losses = trained("full", dtype=dtype, lr=1e-3, precision="fp32")
    _, there, others = trained("full", dtype=dtype, lr=1e-3, precision="fp32", offload=True)
    assert others == pytest.approx(losses, rel=1e-3)
    assert (there - here).norm() < 0.01 * (here - start).norm()


def test_offloaded_masters_and_moments_are_on_the_cpu_and_pinned():
    module = levels.base("llama").to(CUDA)
    make = maker(schema.Optimizer(), offload=True)
    made = optim.optimizer(module, toys.train_settings(), make)
    assert isinstance(made, masters.Masters)
    ids = levels.tokens().to(CUDA)
    module(input_ids=ids, labels=ids).loss.backward()
    made.step()
    for group in made.param_groups:
        for master in group["params"]:
            assert master.is_pinned()
            assert made.state[master]["exp_avg"].device.type == "cpu"


@pytest.mark.parametrize("kind", ["adamw_8bit", "adafactor", *BNB])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_small_optimizers_train(kind, dtype):
    if kind in BNB:
        pytest.importorskip("bitsandbytes")
    _, _, losses = trained("full", dtype=dtype, kind=kind, lr=3e-3, precision="bf16")
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit", "adamw_bnb_8bit"])
def test_state_has_the_size_of_the_row(kind):
    if kind in BNB:
        pytest.importorskip("bitsandbytes")
    weight = nn.Linear(4096, 4096, bias=False, device=CUDA)
    asked = schema.Optimizer(name=kind, kind=kind)
    made = optim.optimizer(weight, toys.train_settings(), maker(asked))
    weight.weight.grad = torch.ones_like(weight.weight)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    made.step()
    held = (torch.cuda.memory_allocated() - before) / weight.weight.numel()
    assert held == pytest.approx(OPTIMIZERS[kind].state, rel=0.02)


def test_8_bit_adamw_is_that_of_bitsandbytes():
    ours, peers, exact, start = beside_the_peer("cuda")
    off = [float((w - exact).norm() / (exact - start).norm()) for w in (ours, peers)]
    assert max(off) < 0.03


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("computed", ["fp32", "bf16"])
def test_a_quantised_base_trains(precision, computed, tmp_path):
    pytest.importorskip("bitsandbytes")
    levels.base("llama").save_pretrained(tmp_path)
    arguments = load._quantised(precision, CUDA)
    asked = cell("lora", base_precision=precision, execution=GPU)
    asked = dataclasses.replace(asked, train=dataclasses.replace(asked.train, precision=computed))
    base = load._read(tmp_path, **arguments)
    module = build.apply(base, asked, streams=levels.Streams(0))
    with load.computing_in(module, computed):
        losses = levels.fit(module, asked)
    assert losses[-1] < losses[0] - 0.05


def test_4_bit_layers_compute_in_the_precision_asked_for(tmp_path):
    pytest.importorskip("bitsandbytes")
    levels.base("llama").save_pretrained(tmp_path)
    base = load._read(tmp_path, **load._quantised("nf4", CUDA))
    ids, seen = levels.tokens().to(CUDA), []
    module = base.model.layers[0].mlp.up_proj
    module.register_forward_hook(lambda m, *_: seen.append(m.compute_dtype))
    with torch.no_grad():
        exact = base(input_ids=ids).logits
        with load.computing_in(base, "bf16"), torch.autocast("cuda", torch.bfloat16):
            rounded = base(input_ids=ids).logits.float()
        again = base(input_ids=ids).logits
    assert seen == [torch.float32, torch.bfloat16, torch.float32]
    assert torch.equal(exact, again)
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_large_base_is_read_straight_to_the_gpu(tmp_path, monkeypatch):
    levels.base("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(load, "KEEP_BYTES", 0)
    files = SimpleNamespace(folder=tmp_path, parameters=1, content_hash="large")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found = load.load(files, precision, device=CUDA)
        expected = dict(levels.base("llama").named_parameters())
        for name, parameter in found.named_parameters():
            assert (parameter.device.type, parameter.dtype) == ("cuda", dtype)
            assert torch.equal(parameter.detach().cpu(), expected[name].detach().to(dtype))


@pytest.mark.parametrize("kind", ["neftune", "rank_dropout"])
def test_noise_made_on_the_gpu_is_the_same_in_every_run(kind):
    asked = cell("lora", regulariser=regularised.STRONG[kind], execution=GPU)
    asked = dataclasses.replace(
        asked, train=toys.train_settings(max_steps=4, batch_size=7, lr=0.01, clip=None)
    )
    plain = dataclasses.replace(asked, regulariser=schema.Regulariser())
    (one, _, _), (two, _, _), (none, _, _) = (
        regularised.run(which, base=levels.base("llama").to(CUDA))
        for which in (asked, asked, plain)
    )
    assert one == pytest.approx(two, rel=1e-5)
    assert one != pytest.approx(none, rel=1e-4)
