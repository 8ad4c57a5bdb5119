"""Time and memory of every adapter level, init and optimizer against LoRA at the same rank.

    python benchmarks/adapters.py --out docs/adapter_costs.csv
    python benchmarks/adapters.py --device cuda --hidden 2048 --layers 16 --rank 16

Every level is applied to the same random Llama and trained on the same rows by the loop of every
cell. Levels take turns, round after round, so that a busy machine slows all of them alike; a
level's figure is the median over rounds of its step against LoRA's step in the same round.

    step       seconds of an optimizer step (median of a run's; on a CPU the process's own time),
               so that rare events (a restart, a pruning) are not in it
    start      seconds before the first step: the layers, their start, calibration
    memory     bytes of weights and buffers, gradients, optimizer state and what the backward pass
               keeps of the forward pass, each tensor once: the same at every run, and what
               resident memory hides behind the allocator
"""

import argparse
import gc
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ablate import paths
from ablate.adapters import build, hooks, optimizers
from ablate.config import compose, schema
from ablate.config.build import build as cell_from
from ablate.data.tokenise import Tokenised
from ablate.errors import UserError
from ablate.experiment.cell_data import tokenised
from ablate.models.files import resolve
from ablate.models.load import load
from ablate.objective import objective_of
from ablate.streams import Streams
from ablate.training.hooks import combine
from ablate.training.loop import train
from ablate.training.regularisation.hooks import regularised

LORA = "lora"
LEFT_OUT = ("none",)
HOST = {"init": LORA, "optimizer": LORA}  # the adapter that starts and rules are measured with
SAME = (("init", "default"), ("optimizer", "adamw"))


def main() -> None:
    """Measure, print a Markdown table, and write it as CSV."""
    asked = _arguments()
    torch.set_num_threads(asked.threads)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        model_folder(Path(folder), asked)
        found = cells(asked, Path(folder))
        rows = [row for turn in range(asked.rounds) for row in _round(turn, found, asked)]
        measured = {row["level"] for row in rows}
        memory = {n: resident(c, asked.device) for n, c in found.items() if n in measured}
    table = summary(pd.DataFrame(rows), memory)
    print(markdown(table))
    if asked.out:
        table.to_csv(asked.out, index=False, float_format="%.4g")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, default in (
        ("hidden", 256), ("layers", 4), ("rank", 8), ("batch", 8), ("steps", 7), ("rounds", 3),
        ("threads", 1),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="names of levels; LoRA is always among them")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def model_folder(folder: Path, asked: argparse.Namespace) -> None:
    """Write a random Llama of the asked shape, with the embedded tokenizer, in the hub's format."""
    tokenizer = AutoTokenizer.from_pretrained(
        Path(paths.__file__).parent / "micro" / "checkpoints" / "micro_0"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=asked.hidden, num_hidden_layers=asked.layers,
        intermediate_size=asked.hidden * 11 // 4, num_attention_heads=asked.hidden // 32,
        num_key_value_heads=asked.hidden // 64, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)


def cells(asked: argparse.Namespace, folder: Path) -> dict[str, schema.Cell]:
    """Return every level that is legal here as a cell, by name; LoRA first."""
    found: dict[str, schema.Cell] = {}
    for group in ("adapter", "init", "optimizer"):
        for file in sorted((paths.conf_dir() / group).glob("*.yaml")):
            if file.stem in LEFT_OUT or (group, file.stem) in SAME:
                continue
            name = file.stem if group == "adapter" else f"{HOST[group]}+{file.stem}"
            if asked.only and name not in (LORA, *asked.only):
                continue
            words = [f"{group}={file.stem}"]
            words += [f"adapter={HOST[group]}"] if group in HOST else []
            try:
                found[name] = _cell(words, asked, folder)
            except UserError as error:
                print(f"{name}: left out, {error}")
    return {LORA: found.pop(LORA)} | found


def _cell(words: list[str], asked: argparse.Namespace, folder: Path) -> schema.Cell:
    fixed = [
        "dataset=micro", "model=local", f"model.path={folder}", f"rank={asked.rank}",
        "masking=instruction", "train=micro", "train.lr=1e-4", f"train.max_steps={asked.steps}",
        f"train.batch_size={asked.batch}", f"execution.device={asked.device}",
    ]  # fmt: skip
    (point,) = compose.expand([*words, *fixed]).points
    return cell_from(point.tree)


def _round(turn: int, found: dict[str, schema.Cell], asked: argparse.Namespace) -> Iterator[Any]:
    for name, cell in found.items():
        gc.collect()
        try:
            start, step = timed(cell, asked.device)
        except (UserError, ImportError, ValueError) as error:  # loftq wants bitsandbytes
            if turn == 0:
                print(f"{name}: left out, {error}")
            continue
        yield {"round": turn, "level": name, "start": start, "step": step}


def timed(cell: schema.Cell, device: str) -> tuple[float, float]:
    """Return the seconds before the first step, and those of a step."""
    clock = time.process_time if device == "cpu" else _synchronised
    data = rows_of(cell)
    base = load(resolve(cell.model), cell.base_precision, device=torch.device(device))
    begun = clock()
    model = applied(base, cell, data)
    started, moments = clock() - begun, [clock()]
    fit(model, cell, data, tick=lambda *_: moments.append(clock()))
    steps = [b - a for a, b in itertools.pairwise(moments)]
    return started, statistics.median(steps[1:])  # the first one warms up


def _synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def rows_of(cell: schema.Cell) -> Tokenised:
    """Return the cell's training rows, tokenised once and cached by content."""
    return tokenised(cell, "train")


def applied(base: Any, cell: schema.Cell, data: Tokenised) -> nn.Module:
    """Return the model with the cell's adapter."""
    return build.apply(base, cell, streams=Streams(cell.seed), data=data)


def fit(model: nn.Module, cell: schema.Cell, data: Tokenised, tick: Callable[..., None]) -> None:
    """Train in the loop of every cell."""
    streams = Streams(cell.seed)
    with regularised(model, cell, streams=streams) as held:
        train(
            model, data, cell.train, objective=objective_of(cell), streams=streams,
            execution=cell.execution,
            tick=tick, make_optimizer=optimizers.maker(cell.optimizer),
            hooks=combine(hooks.hooks(cell, streams=streams), held),
        )  # fmt: skip


class Meter:
    """Bytes of distinct storages."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it was counted already."""
        if tensor.layout != torch.strided:  # a sparse one has no storage of its own
            parts = tensor.detach().coalesce() if tensor.is_sparse else tensor
            self.seen[id(tensor)] = parts.values().numel() * parts.element_size()
            return
        storage = tensor.untyped_storage()
        self.seen[storage.data_ptr()] = storage.nbytes()

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(self.seen.values())


def resident(cell: schema.Cell, device: str) -> dict[str, float]:
    """Return bytes of the model, its gradients, the optimizer's state and the kept activations."""
    data = rows_of(cell)
    base = load(resolve(cell.model), cell.base_precision, device=torch.device(device))
    model = applied(base, cell, data)
    held, states = Meter(), Meter()
    for tensor in (*model.parameters(), *model.buffers()):
        held.add(tensor)
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    kept: list[Meter] = [Meter()]  # of every step
    with _activations(held, kept), _states(states):
        fit(model, cell, data, tick=lambda *_: kept.append(Meter()))
    return {
        "weights": float(held.total), "gradients": float(gradients),
        "optimizer": float(states.total), "activations": float(kept[0].total),
    }  # fmt: skip


@contextmanager
def _activations(held: Meter, kept: list[Meter]) -> Iterator[None]:
    def pack(tensor: Tensor) -> Tensor:
        strided = tensor.layout == torch.strided
        if not strided or tensor.untyped_storage().data_ptr() not in held.seen:
            kept[-1].add(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


@contextmanager
def _states(states: Meter) -> Iterator[None]:
    def look(optimizer: Any, *_: Any) -> None:
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor) and value.numel() > 1:
                    states.add(value)

    hook = register_optimizer_step_post_hook(look)
    try:
        yield
    finally:
        hook.remove()


def summary(rows: pd.DataFrame, memory: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return a line per level: step and start, their ratio to LoRA's, memory and its parts."""
    wide = rows.pivot(index="round", columns="level", values="step")
    ratios = wide.div(wide[LORA], axis=0)
    made = []
    for level in rows["level"].drop_duplicates():
        parts, own = memory[level], rows[rows["level"] == level]
        whole, lora = sum(parts.values()), sum(memory[LORA].values())
        made.append(
            {
                "level": level, "step_ms": 1e3 * own["step"].median(),
                "time": ratios[level].median(), "time_low": ratios[level].min(),
                "time_high": ratios[level].max(), "start_s": own["start"].median(),
                "memory_mb": whole / 2**20, "memory": whole / lora,
                **{f"{k}_mb": v / 2**20 for k, v in parts.items()},
            }
        )  # fmt: skip
    return pd.DataFrame(made)


def markdown(table: pd.DataFrame) -> str:
    """Return the table for the documentation."""
    lines = [
        "| level | time of a step | (least to most) | start, s | memory |", "|---|--:|--:|--:|--:|"
    ]  # fmt: skip
    for row in table.to_dict("records"):
        lines.append(
            f"| {row['level']} | {row['time']:.2f} | {row['time_low']:.2f} to "
            f"{row['time_high']:.2f} | {row['start_s']:.2f} | {row['memory']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
