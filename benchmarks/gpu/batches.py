"""Packed and padded rows: attention, memory of a packed row, tokens a second of the loop.

python -m benchmarks.gpu.batches
python -m benchmarks.gpu.batches --device cpu --tiny
"""

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablate.config.schema import Execution, Train
from ablate.models.attention import attention, by_segments, find_kernels
from ablate.models.packed import Bounds, inputs
from ablate.streams import Streams
from ablate.training.hooks import Hooks
from ablate.training.loop import train
from benchmarks.gpu import common

STEPS = 12
WARM = 4  # steps whose time is not counted


def main(given: argparse.Namespace) -> None:
    """Print every figure."""
    device = torch.device(given.device)
    one_layer(given, device)
    memory(given, device)
    loop(given, device)


def one_layer(given: argparse.Namespace, device: torch.device) -> None:
    """Time forward and backward of one attention layer on rows of Alpaca-like lengths."""
    find_kernels()
    H, G, D, count = (4, 2, 16, 8) if given.tiny else (32, 8, 64, 128)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    find_kernels()
    lengths = sorted(common.rows(count, 512).lengths.tolist(), reverse=True)
    T = sum(lengths)
    query, key, value = (
        torch.randn(1, heads, T, D, device=device, dtype=dtype, requires_grad=True)
        for heads in (H, G, G)
    )
    given_E = Bounds.of(lengths).moved(lambda tensor: tensor.to(device)).arguments()
    layer = nn.Module()

    def packed(dropout: float) -> Callable[[], None]:
        def step() -> None:  # a dropout that drops nothing takes the way without the kernel
            found, _ = attention(layer, query, key, value, None, dropout=dropout, **given_E)
            found.sum().backward()

        return step

    def masked() -> None:
        example_T = torch.repeat_interleave(
            torch.arange(count, device=device), torch.tensor(lengths, device=device)
        )
        seen_TT = (example_T[:, None] == example_T) & torch.ones(
            T, T, dtype=torch.bool, device=device
        ).tril()
        F.scaled_dot_product_attention(
            query,
            key.repeat_interleave(H // G, 1),
            value.repeat_interleave(H // G, 1),
            attn_mask=seen_TT,
        ).sum().backward()

    def padded() -> None:
        shape = (count, lengths[0], D)
        parts = [torch.randn(count, h, *shape[1:], device=device, dtype=dtype) for h in (H, H, H)]
        q, k, v = (part.requires_grad_() for part in parts)
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    ways = {"kernel": packed(0.0), "by_length": packed(1e-9), "mask": masked, "padded": padded}
    for name, step in ways.items():
        common.peak_gib(device)
        taken = common.seconds(device, step, repeats=5)
        common.report(
            given.out,
            device,
            f"batches.attention.{name}",
            value=taken * 1e3,
            unit="ms forward and backward",
            shape=[T, H, G, D],
            peak_gib=common.peak_gib(device),
        )


def memory(given: argparse.Namespace, device: torch.device) -> None:
    """Report what a packed row keeps for its backward pass; it should be linear in the tokens."""
    model = common.llama("tiny" if given.tiny or device.type == "cpu" else "100m", device)
    for tokens in (1024, 4096) if given.tiny else (4096, 16_384, 65_536):
        lengths = [256] * (tokens // 256)
        ids = torch.randint(512, (1, tokens), device=device)
        positions = torch.arange(256, device=device).repeat(len(lengths))[None]
        bounds = Bounds.of(lengths).moved(lambda tensor: tensor.to(device))
        with by_segments(model), torch.autocast(device.type, torch.bfloat16):
            kept = kept_bytes(model.model, inputs(model, ids, positions, bounds))
        common.report(
            given.out,
            device,
            "batches.memory",
            value=kept / tokens,
            unit="bytes kept for the backward pass, a token",
            shape=[tokens, model.config.hidden_size, model.config.num_hidden_layers],
        )


def kept_bytes(body: nn.Module, arguments: dict[str, object]) -> int:
    """Return the bytes that autograd keeps of a forward pass, each storage once, no weight."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = body(**arguments)
    assert output.last_hidden_state.requires_grad
    weights = {p.untyped_storage().data_ptr() for p in body.parameters()}
    return sum(size for place, size in kept.items() if place not in weights)


class Clock:
    """The time from the end of the last warm step on."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._started = device, 0.0

    def __call__(self, step: int) -> None:
        """Note the end of a step; the first ones compile kernels and fill caches."""
        if step == WARM - 1:
            common.synchronize(self._device)
            self._started = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds until now."""
        common.synchronize(self._device)
        return time.perf_counter() - self._started


def loop(given: argparse.Namespace, device: torch.device) -> None:
    """Time the loop's steps, padded and packed, full and with LoRA."""
    shape, batch = ("tiny", 4) if given.tiny else ("100m", 64)
    data = common.rows(batch * STEPS, common.SHAPES[shape]["vocab_size"])
    precision = "bf16" if device.type == "cuda" else "fp32"
    for adapter, layout in itertools.product(("full", "lora"), ("padded", "packed")):
        model: nn.Module = common.llama(shape, device)
        model = common.with_lora(model) if adapter == "lora" else model
        clock = Clock(device)
        common.peak_gib(device)
        result = train(
            model,
            data,
            Train(name="benchmark", lr=1e-4, batch_size=batch, epochs=1.0, precision=precision),
            objective=common.objective(0.1),
            streams=Streams(0),
            execution=Execution(device=given.device, layout=layout),
            hooks=Hooks(after_step=lambda context, clock=clock: clock(context.step)),
        )
        tokens = sum(int(entry["tokens"] or 0) for entry in result.history[WARM:])
        common.report(
            given.out,
            device,
            f"batches.loop.{adapter}.{layout}",
            value=tokens / clock.seconds(),
            unit="tokens/s",
            shape=[shape, batch],
            peak_gib=common.peak_gib(device),
            micro_batch_tokens=result.micro_batch_tokens,
        )


if __name__ == "__main__":
    main(common.arguments(__doc__).parse_args())
