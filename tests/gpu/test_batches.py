"""What only a GPU can show of packed rows, micro-batches that fit, and a loop that never waits."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ablate.config.schema import Loss
from ablate.models import attention
from ablate.models.attention import by_segments
from ablate.models.packed import Bounds, inputs, keeps_packed_apart, kernel_serves, takes_segments
from ablate.objective import make_objective
from ablate.roles import Role
from ablate.streams import Streams
from ablate.training import layout, room
from ablate.training.history import Result
from ablate.training.hooks import Hooks
from ablate.training.loop import train
from tests import toys

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

LENGTHS = (300, 64, 64, 17, 5, 1)
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(room, "_FOUND", {})
    attention.find_kernels()
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.set_per_process_memory_fraction(1.0)


def llama(**changes: Any) -> LlamaForCausalLM:
    settings = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": toys.VOCAB,
        "max_position_embeddings": 4096,
        "initializer_range": 0.05,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).to(CUDA).eval()


def run(model: Any, *, hooks: Hooks | None = None, rows: int = 40, **changes: Any) -> Result:
    settings = {"batch_size": 8, "epochs": 4.0, "max_steps": 20, "lr": 1e-3}
    execution = {"device": "cuda"} | changes.pop("execution", {})
    return train(
        model,
        toys.tokenised(toys.examples(rows)),
        toys.train_settings(**settings | changes),
        objective=make_objective(toys.masking("none"), 0.1, 1.0, Loss()),
        streams=Streams(0),
        execution=toys.execution(**execution),
        hooks=hooks or Hooks(),
    )


def losses(result: Result) -> Tensor:
    return torch.tensor([float(entry["loss"] or 0) for entry in result.history])


# -- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("H", "G", "D"), [(4, 4, 64), (8, 2, 64), (4, 1, 16)])
@pytest.mark.parametrize("scaling", [None, 0.2])
def test_the_kernel_computes_what_torchs_own_attention_does_row_by_row(
    H: int, G: int, D: int, dtype: torch.dtype, scaling: float | None
) -> None:
    torch.manual_seed(0)
    T = sum(LENGTHS)
    states = [torch.randn(1, heads, T, D, device=CUDA) for heads in (H, G, G)]
    weights = torch.randn(1, T, H, D, device=CUDA)
    attention.find_kernels()
    kernel = attention.kernel_for(CUDA, dtype, D)
    assert kernel is not None
    ends = Bounds.of(LENGTHS).ends_E1.to(CUDA)
    found, expected = [], []
    q, k, v = (x.to(dtype).requires_grad_() for x in states)
    flat = (x[0].transpose(0, 1) for x in (q, k, v))
    out = kernel(*flat, ends, max(LENGTHS), scaling)[None]
    (out * weights).sum().backward()
    found += [out.detach(), *(x.grad for x in (q, k, v))]
    q, k, v = (x.clone().requires_grad_() for x in states)
    out = attention._by_length(q, k, v, attention.Segments(LENGTHS), 0.0, scaling)
    (out * weights).sum().backward()
    expected += [out.detach(), *(x.grad for x in (q, k, v))]
    for one, other in zip(found, expected, strict=True):
        error = (one.float() - other).norm() / other.norm()
        assert error < (2e-2 if dtype == torch.bfloat16 else 4e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_llama_takes_segments_and_keeps_examples_apart(precision: str) -> None:
    model = llama()
    assert takes_segments(model, longest=64, precision=precision)
    assert keeps_packed_apart(model, precision=precision)
    assert kernel_serves(model, precision) == (precision == "bf16")


@pytest.mark.parametrize(
    ("precision", "changes", "expected"),
    [
        ("bf16", {}, "packed"),
        ("fp32", {}, "padded"),
        ("bf16", {"attention_dropout": 0.1}, "padded"),
    ],
)
def test_auto_packs_where_the_kernel_runs(
    precision: str, changes: dict[str, Any], expected: str
) -> None:
    found, segments = layout.chosen(
        llama(**changes),
        make_objective(toys.masking("none"), 0.1, 1.0, Loss()),
        toys.execution(device="cuda", layout="auto"),
        settings=toys.train_settings(precision=precision),
        longest=64,
    )
    assert (found.layout, segments) == (expected, True)


def test_packed_and_padded_train_the_same_in_float32() -> None:
    found = []
    for lay, size in itertools.product(("padded", "packed"), (1, 4, "auto")):
        model = llama()
        result = run(model, execution={"layout": lay, "micro_batch_size": size})
        found.append(
            (losses(result), torch.cat([p.detach().flatten() for p in model.parameters()]))
        )
    for other, weights in found[1:]:
        torch.testing.assert_close(other, found[0][0], rtol=1e-5, atol=0)
        assert (weights - found[0][1]).norm() < 1e-5 * weights.norm()


def test_packed_and_padded_train_alike_in_bfloat16() -> None:
    padded = run(llama(), precision="bf16", execution={"layout": "padded"})
    packed = run(llama(), precision="bf16", execution={"layout": "packed"})
    exact = run(llama(), execution={"layout": "padded"})
    rounding = (losses(padded) - losses(exact)).abs().max()
    assert (losses(packed) - losses(exact)).abs().max() < 4 * rounding + 1e-3


def test_the_memory_of_a_packed_row_is_linear_in_its_tokens() -> None:
    model = llama()
    peaks = []
    for tokens in (4096, 16_384, 65_536):
        lengths = [128] * (tokens // 128)
        ids = torch.randint(toys.VOCAB, (1, tokens), device=CUDA)
        positions = torch.arange(128, device=CUDA).repeat(tokens // 128)[None]
        bounds = Bounds.of(lengths).moved(lambda x: x.to(CUDA))
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with by_segments(model), torch.autocast("cuda", torch.bfloat16):
            model(**inputs(model, ids, positions, bounds)).logits.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        model.zero_grad()
    assert peaks[2] / peaks[1] == pytest.approx(4, rel=0.1)
    assert peaks[1] / peaks[0] == pytest.approx(4, rel=0.25)


# -- out of memory ----------------------------------------------------------------------------


def test_a_step_that_does_not_fit_is_taken_again_in_parts() -> None:
    """Every token takes 128 KiB in the forward pass: 1 GiB for the step, 0.7 GiB allowed."""
    rows = [(torch.randint(3, toys.VOCAB, (512,)).tolist(), [Role.COMPLETION] * 512)] * 16

    def take(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        taken = torch.zeros(output.shape[:2].numel(), 32_768, device=output.device)
        return output + taken[0, 0]

    found = []
    for allowed in (None, 0.7 * 2**30):
        model = llama()
        model.model.norm.register_forward_hook(take)
        torch.cuda.empty_cache()
        if allowed is not None:
            total = torch.cuda.get_device_properties(CUDA).total_memory
            used = torch.cuda.memory_allocated() + allowed
            torch.cuda.set_per_process_memory_fraction(used / total)
        result = train(
            model,
            toys.tokenised(rows),
            toys.train_settings(batch_size=16, epochs=3.0, lr=1e-4),
            objective=make_objective(toys.masking("none"), 0.1, 1.0, Loss()),
            streams=Streams(0),
            execution=toys.execution(device="cuda", layout="padded"),
        )
        found.append(result)
    free, short = found
    assert free.out_of_memory == 0
    assert short.out_of_memory > 0
    assert short.micro_batch_tokens < free.micro_batch_tokens == 16 * 512
    torch.testing.assert_close(losses(short), losses(free), rtol=1e-4, atol=0)


# -- waits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("lay", ["padded", "packed"])
def test_no_step_waits_for_the_gpu(lay: str, precision: str) -> None:
    """From the third step to the twelfth; the eleventh measures the share of the gradient."""

    def watch(context: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if 2 <= context.step < 12 else "default")

    result = run(
        llama(),
        precision=precision,
        max_steps=13,
        hooks=Hooks(after_step=watch),
        execution={"layout": lay, "micro_batch_size": 3},
    )
    assert [entry["step"] for entry in result.history] == list(range(1, 14))
    assert torch.isfinite(losses(result)).all()


def test_a_step_that_diverges_is_told_under_its_own_number() -> None:
    from ablate.training.history import Diverged

    def spoil(context: Any) -> None:
        if context.step == 2:
            parameter: nn.Parameter = next(iter(context.model.parameters()))
            assert parameter.grad is not None
            parameter.grad.fill_(torch.nan)

    with pytest.raises(Diverged, match="step 3: grad_norm is nan"):
        run(llama(), hooks=Hooks(after_backward=spoil))
