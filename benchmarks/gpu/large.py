"""A 7B Llama on one GPU: whether it fits, and how fast a step is.

    python -m benchmarks.gpu.large [--device cpu --tiny] [--cases 0 1 2 3]

Full tuning of bf16 weights with `adamw_8bit`, blocks recomputed in the backward pass; the same with
AdamW's masters and moments on the CPU is left out where the CPU has less than 100 GB free; LoRA r8.
64 rows of Alpaca's lengths a step.
"""

import gc
import time
from typing import Any

import psutil
import torch

from ablate.adapters.optimizers import maker
from ablate.config.schema import Execution, Optimizer, Train
from ablate.streams import Streams
from ablate.training.loop import train
from benchmarks.gpu import common

STEPS, WARM, ROWS = 6, 2, 64
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("lora", "adamw", {}),
    ("lora", "adamw", {"gradient_checkpointing": True}),
    ("full", "adamw_8bit", {"gradient_checkpointing": True}),
    ("full", "adamw", {"gradient_checkpointing": True, "offload_optimizer": True}),
)
HOST_BYTES = 100e9  # of masters and moments of 7B parameters, and room


def main() -> None:
    """Report every case."""
    options = common.arguments(__doc__)
    options.add_argument("--cases", type=int, nargs="*", default=range(len(CASES)))
    given = options.parse_args()
    device = torch.device(given.device)
    shape = "tiny" if given.tiny else "7b"
    for adapter, kind, execution in (CASES[number] for number in given.cases):
        what = {"shape": shape, "adapter": adapter, "optimizer": kind, **execution}
        if execution.get("offload_optimizer") and psutil.virtual_memory().available < HOST_BYTES:
            figures: dict[str, Any] = {"skipped": "less than 100 GB of the CPU's memory are free"}
        else:
            figures = measured(shape, adapter, kind, execution, device)
        common.report(given.out, device, "large model", **what, **figures)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measured(
    shape: str, adapter: str, kind: str, execution: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Return speed and memory of one case, or the error."""
    data = common.rows(STEPS * ROWS, common.SHAPES[shape]["vocab_size"])
    settings = Train(
        name="benchmark", lr=1e-5, epochs=1.0, batch_size=ROWS, warmup_ratio=0.0,
        schedule="constant", precision="bf16",
    )  # fmt: skip
    times: list[float] = []

    def tick(step: int, _total: int) -> None:
        if step in (WARM, STEPS):
            common.synchronize(device)
            times.append(time.perf_counter())

    common.peak_gib(device)
    try:
        model: Any = common.llama(shape, device, torch.bfloat16)
        model = common.with_lora(model) if adapter == "lora" else model
        result = train(
            model, data, settings, objective=common.objective(0.1), streams=Streams(0),
            execution=Execution(device=device.type, **execution), tick=tick,
            make_optimizer=maker(
                Optimizer(name=kind, kind=kind), offload=bool(execution.get("offload_optimizer"))
            ),
        )  # fmt: skip
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"}
    timed = result.tokens_seen * (STEPS - WARM) / STEPS
    return {
        "tokens_per_second": timed / (times[1] - times[0]),
        "peak_gib": common.peak_gib(device),
        "losses": [round(float(entry["loss"] or 0), 4) for entry in result.history],
    }


if __name__ == "__main__":
    main()
