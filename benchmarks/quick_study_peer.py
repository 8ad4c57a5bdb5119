"""The other side of `quick_study.py`: TRL's SFTTrainer, then lm-eval, on cells that it prepared.

    python benchmarks/quick_study_peer.py FOUND.json CELL_FOLDER ...

Trains and scores the cells one after another in this process: the base is read once and copied, the
tasks are loaded once. With one cell this is a process per cell. Of `ablate` nothing is imported but
MoRA's layers, which no other library has, and the functions that the micro tasks name. FOUND.json
gets, for each cell, what each part took, the losses and the scores.
"""

import copy
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTED, LOAD = time.perf_counter(), os.getloadavg()[0]


def used() -> float:
    """Return the processor time of this process and its children so far, in seconds.

    lm-eval starts some for its list of the machine's packages.
    """
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(spent.ru_utime + spent.ru_stime for spent in map(resource.getrusage, kinds))


class Clock:
    """Seconds of processor and of wall time, by part."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what the block takes as `name`."""
        before = used(), time.perf_counter()
        yield
        self.add(name, used() - before[0], time.perf_counter() - before[1])

    def add(self, name: str, processor: float, wall: float) -> None:
        """Count seconds as `name`."""
        total = self.parts.setdefault(name, [0.0, 0.0])
        total[0] += processor
        total[1] += wall


def trained(model: Any, cell: dict[str, Any], folder: Path, tokenizer: Any, clock: Clock) -> Any:
    """Return the losses that TRL logs while it trains `model`, and its number of steps.

    The rows are tokenised and stand in the order of the cell's steps; labels are -100 where its
    mask has 0. Nothing is saved, and gradients are not checkpointed.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    with clock.part("trainer"):
        config = SFTConfig(
            output_dir=str(folder / "trl"), num_train_epochs=1, max_length=None,
            per_device_train_batch_size=cell["batch_size"], learning_rate=cell["lr"],
            lr_scheduler_type="cosine", warmup_steps=cell["warmup_steps"],
            weight_decay=cell["weight_decay"], max_grad_norm=cell["clip"], seed=cell["seed"],
            use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            save_strategy="no", logging_first_step=True, disable_tqdm=True,
            dataloader_pin_memory=False, train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=Dataset.load_from_disk(str(folder / "rows")),
            processing_class=tokenizer,
        )  # fmt: skip
    with clock.part("train"):
        trainer.train()
    losses = {e["step"]: e["loss"] for e in trainer.state.log_history if "loss" in e}
    return losses, trainer.state.global_step


def scored(
    model: Any, cell: dict[str, Any], tokenizer: Any, tasks: list[Any], manager: Any
) -> dict[str, Any]:
    """Return what lm-eval says of `model`: by task, items and value."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model.eval()
    found = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=cell["eval_batch_size"]),
        tasks=tasks, task_manager=manager, limit=cell["limit"], num_fewshot=0, bootstrap_iters=0,
    )  # fmt: skip
    assert found is not None
    return {
        name: {
            "items": found["n-samples"][name]["effective"],
            "values": {k.partition(",")[0]: v for k, v in values.items()
                       if "," in k and "_stderr" not in k},
        }
        for name, values in found["results"].items()
    }  # fmt: skip


def adapted(base: Any, cell: dict[str, Any], folder: Path) -> Any:
    """Return a copy of the base with the cell's adapter as it is before training."""
    model = copy.deepcopy(base)
    if cell["adapter"] == "full":
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            part.requires_grad_(False)
        return model
    if cell["adapter"] == "mora":
        import ablate.adapters.tuners  # noqa: F401
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)


def main() -> None:
    """Work through the cells that the command names."""
    out, folders = Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]]
    import torch
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTTrainer  # noqa: F401

    import lm_eval.models.huggingface  # noqa: F401  # isort: skip

    torch.set_num_threads(1)
    common = Clock()
    common.add("imports", used(), time.perf_counter() - STARTED)
    cells = [json.loads((folder / "cell.json").read_text()) for folder in folders]
    with common.part("base"):
        base = AutoModelForCausalLM.from_pretrained(cells[0]["base"], dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(cells[0]["base"])
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with common.part("tasks"):
        manager = TaskManager(include_path=cells[0]["task_folder"], include_defaults=False)
        loaded = manager.load(cells[0]["tasks"])["tasks"]
    found = []
    for cell, folder in zip(cells, folders, strict=True):
        clock = Clock()
        with clock.part("adapter"):
            model = adapted(base, cell, folder)
        losses, steps = trained(model, cell, folder, tokenizer, clock)
        with clock.part("score"):
            scores = scored(model, cell, tokenizer, list(loaded.values()), manager)
        found.append(
            {"cell": cell["name"], "parts": clock.parts, "losses": losses, "steps": steps,
             "scores": scores}
        )  # fmt: skip
    about = {"processor": used(), "wall": time.perf_counter() - STARTED, "load": LOAD}
    out.write_text(json.dumps({"common": common.parts, "cells": found, **about}))


if __name__ == "__main__":
    main()
