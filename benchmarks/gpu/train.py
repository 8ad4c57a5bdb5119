"""Training speed beside TRL's SFTTrainer: the same model, rows, order, optimizer and steps.

    python -m benchmarks.gpu.train [--shape 1b] [--out FILE]      # needs trl==1.16.0

Full tuning and LoRA r8, prompt loss weights 0 and 1, bf16. TRL in its default (padded rows), packed
and with Liger's kernels. Its packed examples see each other where flash-attn is not installed, so
its losses are others there. A figure is tokens a second without padding over the steps after
the first fifth; the first losses of both are printed, for equal work has equal losses.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablate.config.schema import Execution, Train
from ablate.data import batches
from ablate.data.tokenise import Tokenised
from ablate.streams import Streams
from ablate.training.loop import train
from benchmarks.gpu import common

STEPS, BATCH = 25, 16


def main() -> None:
    """Measure every combination that fits."""
    parser = common.arguments(__doc__)
    parser.add_argument("--shape", default="1b", choices=list(common.SHAPES))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--compile", action="store_true", help="also with execution.compile")
    parser.add_argument("--plw", nargs="+", type=float, default=[0.0, 1.0])
    parser.add_argument("--layouts", nargs="+", default=["padded", "packed"])
    given = parser.parse_args()
    device = torch.device(given.device)
    shape = "tiny" if given.tiny else given.shape
    data = common.rows(given.steps * BATCH, common.SHAPES[shape]["vocab_size"])
    for adapter in ("lora", "full"):
        for plw in given.plw:
            runs: list[tuple[str, Callable[..., Any]]] = [
                (f"ablate {layout}", ours(layout)) for layout in given.layouts
            ]
            if given.compile:
                runs += [(f"{name}, compiled", ours(name.split()[1], True)) for name, _ in runs]
            if not given.no_trl:
                # Two packed rows of 1,024 tokens are about the 16 examples of a step.
                packed = trl(packing=True, per_device_train_batch_size=2)
                liger = trl(use_liger_kernel=True)
                runs += [("trl default", trl()), ("trl packed", packed), ("trl liger", liger)]
            for name, run in runs:
                measure(name, run, (shape, adapter, plw), data, device, given.out)


def measure(
    name: str, run: Callable[..., Any], case: tuple[str, str, float], data: Tokenised,
    device: torch.device, out: Path | None,
) -> None:  # fmt: skip
    """Report one run, or why there is none."""
    shape, adapter, plw = case
    common.peak_gib(device)
    try:
        # What is trained in full has float32 weights, as in both programs' default.
        dtype = torch.bfloat16 if adapter == "lora" and device.type == "cuda" else torch.float32
        model = common.llama(shape, device, dtype)
        if adapter == "lora":
            model = common.with_lora(model, ours=name.startswith("ablate"))
        speed, losses = run(model, data, plw, device)
    except Exception as error:
        first = str(error).strip().splitlines()[:1]
        common.report(out, device, name, shape=shape, adapter=adapter, plw=plw,
                      error=f"{type(error).__name__}: {first}")  # fmt: skip
    else:
        common.report(
            out, device, name, shape=shape, adapter=adapter, plw=plw, tokens_per_second=speed,
            peak_gib=common.peak_gib(device), losses=[round(x, 4) for x in losses[:4]],
            last_losses=[round(x, 4) for x in losses[-2:]],
        )  # fmt: skip
    finally:
        model = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def settings(device: torch.device) -> Train:
    """Return what both programs train with."""
    return Train(
        name="benchmark", lr=1e-4, epochs=1.0, batch_size=BATCH, warmup_ratio=0.0,
        schedule="constant", precision="bf16" if device.type == "cuda" else "fp32",
    )  # fmt: skip


def warm(order: list[np.ndarray]) -> int:
    """Return how many steps are not timed."""
    return max(1, len(order) // 5)


def clock(device: torch.device) -> float:
    """Return seconds: on a CPU those of the processor, whatever else it computes."""
    common.synchronize(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def stepped(order: list[np.ndarray], data: Tokenised) -> int:
    """Return the tokens of the steps that are timed."""
    return int(sum(data.lengths[rows].sum() for rows in order[warm(order) :]))


def ours(layout: str, compile: bool = False) -> Callable[..., tuple[float, list[float]]]:
    """Return the run of this project's loop under a layout."""

    def run(model: Any, data: Tokenised, plw: float, device: torch.device) -> Any:
        streams, times = Streams(0), []
        order = batches.order(data, train=settings(device), generator=Streams(0).numpy("order"))

        def tick(step: int, _total: int) -> None:
            if step in (warm(order), len(order)):
                times.append(clock(device))

        result = train(
            model, data, settings(device), objective=common.objective(plw), streams=streams,
            execution=Execution(device=device.type, layout=layout, compile=compile), tick=tick,
        )  # fmt: skip
        losses = [float(entry["loss"] or 0.0) for entry in result.history]
        return stepped(order, data) / (times[1] - times[0]), losses

    return run


def trl(**changes: Any) -> Callable[..., tuple[float, list[float]]]:
    """Return the run of TRL's trainer with its defaults but for `changes`."""

    def run(model: Any, data: Tokenised, plw: float, device: torch.device) -> Any:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import SFTConfig, SFTTrainer

        order = batches.order(data, train=settings(device), generator=Streams(0).numpy("order"))
        parts = [data.row(int(row)) for step in order for row in step]
        table = Dataset.from_dict({
            "input_ids": [ids.tolist() for ids, _ in parts],
            "completion_mask": [(roles == roles.max()).astype(int).tolist() for _, roles in parts],
        })  # fmt: skip
        times: list[float] = []
        config = SFTConfig(
            output_dir="/tmp/trl", num_train_epochs=1,
            learning_rate=1e-4, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
            logging_steps=1, report_to="none", save_strategy="no", bf16=device.type == "cuda",
            use_cpu=device.type == "cpu", gradient_checkpointing=False,
            completion_only_loss=plw == 0.0, max_length=1024, disable_tqdm=True,
            train_sampling_strategy="sequential", dataloader_num_workers=0,
            **{"per_device_train_batch_size": BATCH} | changes,
        )  # fmt: skip

        class Times(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step in (first, state.max_steps):
                    times.append(clock(device))

        trainer = SFTTrainer(
            model=model, args=config, train_dataset=table, processing_class=tokenizer(),
            callbacks=[Times()],
        )  # fmt: skip
        steps = len(trainer.get_train_dataloader())
        first = max(1, steps // 5)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        tokens = data.lengths.sum() * (steps - first) / steps
        return float(tokens / (times[1] - times[0])), losses

    return run


def tokenizer() -> Any:
    """Return a tokenizer, which TRL needs for its padding; its rows are ids already."""
    from transformers import AutoTokenizer

    from ablate.paths import conf_dir

    folder = conf_dir().parent / "ablate/micro/checkpoints/micro_0"
    made = AutoTokenizer.from_pretrained(folder)
    made.pad_token = made.pad_token or made.eos_token
    return made


if __name__ == "__main__":
    main()
