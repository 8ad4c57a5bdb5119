"""Writes `inspect/`: logs of Inspect itself, of its model of given answers, as .eval and as .json.

    pip install inspect_ai
    python tests/logs/make_inspect.py

Base answers 8 sums once, tuned twice (epochs). In the log that is JSON, events and attachments are
emptied: they are long and of no score.
"""

import json
import random
import shutil
from pathlib import Path
from unittest import mock

from inspect_ai import Task
from inspect_ai import eval as run
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, get_model
from inspect_ai.scorer import includes, match
from inspect_ai.solver import generate

HERE = Path(__file__).parent
ITEMS = 8


def write(model: str, seed: int, *, kind: str, epochs: int, right: float) -> None:
    """Evaluate answers of which a share is right."""
    rng = random.Random(seed)
    samples = [
        Sample(
            id=i + 1,
            input=f"What is {i} + {i}?",
            target=str(2 * i),
            metadata={"topic": f"t{i % 3}"},
        )
        for i in range(ITEMS)
    ]
    answers = [
        ModelOutput.from_content(model, str(2 * i) if rng.random() < right else "unknown")
        for _ in range(epochs)
        for i in range(ITEMS)
    ]
    run(
        Task(dataset=samples, solver=generate(), scorer=[match(), includes()], name="sums"),
        model=get_model(f"mockllm/{model}", custom_outputs=answers), epochs=epochs,
        log_format=kind, log_dir=str(HERE / "inspect" / model), display="none", max_samples=1,
        temperature=0.5, log_model_api=False,
    )  # fmt: skip


def emptied(path: Path) -> None:
    """Empty what is long in a log that is JSON."""
    log = json.loads(path.read_text(encoding="utf-8"))
    for sample in log["samples"]:
        sample |= {"events": [], "attachments": {}, "events_data": None, "messages": []}
    log["eval"]["model_args"] = {}
    path.write_text(json.dumps(log, indent=1), encoding="utf-8")


if __name__ == "__main__":
    shutil.rmtree(HERE / "inspect", ignore_errors=True)
    words = mock.Mock(encode=lambda text, **_: text.split())  # the real one is a download
    with mock.patch("tiktoken.get_encoding", return_value=words):
        write("base", 1, kind="eval", epochs=1, right=0.8)
        write("tuned", 2, kind="json", epochs=2, right=0.5)
    for file in (HERE / "inspect").rglob("*.json"):
        emptied(file)
