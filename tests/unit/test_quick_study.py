"""The benchmark of the quick study: its own side, and the cells that it prepares for the other."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from benchmarks import quick_study as study


@pytest.mark.slow
def test_prepared_rows_have_the_losses_that_the_sweep_records(tmp_path):
    """The mean loss of plain transformers over the labels of a step is the first of the run."""
    found = study.sweep(tmp_path / "ours", [*study.SMALL, "seed=0"])
    assert found["cells"] == 2
    assert found["processor"] > 0
    for folder in study.prepared(tmp_path / "cells", study.SMALL):
        about = json.loads((folder / "cell.json").read_text())
        place = tmp_path / "ours" / "cells" / about["key"]
        record = json.loads((place / "record.json").read_text())
        rows = Dataset.load_from_disk(str(folder / "rows"))
        assert len(rows) == about["steps"] * about["batch_size"]
        assert about["tokens"] == record["training"]["tokens_seen"]
        model = AutoModelForCausalLM.from_pretrained(about["base"], dtype=torch.float32).eval()
        total = count = 0
        for row in rows.select(range(about["batch_size"])):
            ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
            size = int((labels[0, 1:] != -100).sum())
            with torch.no_grad():
                total += float(model(input_ids=ids, labels=labels).loss) * size
            count += size
        first = pd.read_parquet(place / "history.parquet")["loss"][0]
        np.testing.assert_allclose(total / count, first, rtol=1e-5)


def test_a_study_is_what_is_done_once_and_its_cells():
    """Ours 10 s once and 5 s a cell, a loop 20 and 10, a process a cell 30: by hand."""
    small = {"wall": 1.0}
    figures = {
        "ours": {"processor": 10 + 12 * 5, "wall": 35.0, "cells": 12},
        "ours, 2 very small cells": {"processor": 10 + 2, "cells": 2, **small},
        "ours, 4 very small cells": {"processor": 10 + 4, "cells": 4, **small},
        "loop": {
            "processor": 20 + 12 * 10, "wall": 70.0, "cells": 12,
            "parts": {"imports": 14.0, "base": 2.0, "tasks": 4.0, "train": 120.0},
        },
        "processes": {"processor": 6 * 30, "wall": 90.0, "cells": 6},
    }  # fmt: skip
    ours, loop, processes = study.times(figures)
    assert [one["study_processor"] for one in (ours, loop, processes)] == [690, 1380, 4080]
    assert (loop["study_times_ours"], loop["processor_times_ours"]) == (2.0, 2.0)
    assert processes["processor_times_ours"] == round(12 * 30 / 70, 2)
    assert processes["wall_times_ours"] == round(180 / 35, 2)
