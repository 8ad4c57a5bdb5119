"""A data set of many short rows: what a row costs in memory and in processor time."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from ablate import paths

pytestmark = pytest.mark.slow
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false"}
WORDS = "the of and a to in is you that it he was for on are as with his they at"
MICRO = paths.conf_dir().parent / "ablate" / "micro" / "checkpoints" / "micro_0"
# Bytes of memory that a further row may take: 48 of its place, its hash and its number, 8 of its
# start, its text while there is room for that, and what the allocator keeps.
ROW_BYTES = 1000
# Processor time, in that of the tokenizer's own work on the same texts.
TIMES = 12.0
JOB = """
import json, resource, sys, time
from pathlib import Path
from ablate.config.schema import Dataset
from ablate.data.tokenise import summary
from ablate.data.tokenizer import Tokenizer

data = Dataset(name="d", source="local", path=sys.argv[1], template="plain")
started = time.process_time()
for part in ("train", "validation", "test"):
    summary(data, part, model_folder=Path(sys.argv[2]), chat_template=None, max_length=64,
            boundary="offset")
spent = time.process_time() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()[:10_000]]
texts = ["\\n".join(row.values()) for row in rows]
tokenizer = Tokenizer(sys.argv[2])
started = time.process_time()
tokenizer._tokenizer.encode_batch(texts, add_special_tokens=False)
own = (time.process_time() - started) / len(texts)
print(json.dumps({"peak": peak, "spent": spent, "own": own}))
"""


def cost(tmp_path, count):
    words = WORDS.split()
    draws = np.random.default_rng(count)
    path = tmp_path / f"{count}.jsonl"
    with path.open("w") as file:
        for number in range(count):
            said = " ".join(draws.choice(words, 12))
            row = {"instruction": said, "output": f"{' '.join(draws.choice(words, 8))} {number}"}
            file.write(json.dumps(row) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(path), str(MICRO)],
        env=os.environ | {"ABLATE_CACHE": str(tmp_path / "cache"), **ONE_THREAD},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_row_costs_little_memory_and_a_few_times_its_tokenizing(tmp_path):
    few, many = cost(tmp_path, 5_000), cost(tmp_path, 60_000)
    assert (many["peak"] - few["peak"]) / 55_000 < ROW_BYTES
    assert many["spent"] / 60_000 < TIMES * many["own"]
