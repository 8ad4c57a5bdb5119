"""Pretraining of a micro model: a shorter one can be made again; the shipped ones are as said."""

import hashlib
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ablate.micro
from ablate.config import compose
from ablate.config.grid import cells
from ablate.micro import corpus
from ablate.micro.tokenizer import save_tokenizer, train_tokenizer
from ablate.micro.world import world
from ablate.training.checkpoints import keeper
from ablate.training.pretrain import pretrain

CHECKPOINTS = Path(ablate.micro.__file__).parent / "checkpoints"
NAMES = ("micro_0", "micro_1", "micro_2")
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _official(*words: str) -> tuple:
    """Return the cell and the model shape that `ablate pretrain` takes."""
    defaults = ["dataset=micro_pretraining", "train=pretrain", "evaluate=none"]
    grid = compose.expand([*defaults, *words])
    (entry,) = cells(grid)
    return entry.cell, grid.settings["pretrain"]


@pytest.mark.slow
def test_a_short_pretraining_learns_and_is_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    cell, shape = _official("dataset.options.train_size=240")
    losses = {}
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        course = pretrain(tmp_path / name, cell.dataset, cell.train, shape=shape, seed=seed)
        losses[name] = [entry["loss"] for entry in course.history]
    assert losses["a"][-1] < losses["a"][0] - 1
    assert losses["a"] == losses["b"] != losses["c"]
    for name in FILES:
        assert _hash(tmp_path / "a" / name) == _hash(tmp_path / "b" / name)
    assert _hash(tmp_path / "a" / FILES[1]) != _hash(tmp_path / "c" / FILES[1])


def test_shipped_models_have_the_official_shape():
    _, shape = _official()
    for name in NAMES:
        config = json.loads((CHECKPOINTS / name / "config.json").read_text())
        assert {key: config[key] for key in shape} == dict(shape)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_small_and_complete(name):
    weights = load_file(CHECKPOINTS / name / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert 200_000 <= sum(tensor.numel() for tensor in weights.values()) <= 300_000
    config = json.loads((CHECKPOINTS / name / "config.json").read_text())
    assert config["tie_word_embeddings"]
    assert config["hidden_size"] % 16 == 0


def test_shipped_models_share_a_tokenizer_and_differ_in_weights():
    weights = {_hash(CHECKPOINTS / name / "model.safetensors") for name in NAMES}
    tokenizers = {_hash(CHECKPOINTS / name / "tokenizer.json") for name in NAMES}
    assert len(weights) == len(NAMES)
    assert len(tokenizers) == 1


def test_the_shipped_tokenizer_is_the_one_that_this_code_trains(tmp_path):
    tokenizer = train_tokenizer(corpus.vocabulary_texts(world(), rows=5000))
    save_tokenizer(tokenizer, tmp_path, max_length=512)
    for name in FILES[2:]:
        assert _hash(tmp_path / name) == _hash(CHECKPOINTS / NAMES[0] / name)


def test_pretraining_that_is_stopped_goes_on_and_ends_as_undisturbed(tmp_path, monkeypatch):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(keeper, "LEAST_SHARE", 0)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": f"page {n} has number {n * n}"}) + "\n" for n in range(90))
    )
    cell, shape = _official(
        "dataset=local",
        f"dataset.path={rows}",
        "train.max_steps=4",
        "execution.checkpoint_minutes=0",
    )

    def made(folder, stop_after=0, **changes):
        def tick(done, steps):
            if done == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        settings = replace(cell.train, **changes)
        own = {"shape": shape, "seed": 0, "execution": cell.execution, "tick": tick}
        return pretrain(tmp_path / folder, cell.dataset, settings, **own)

    undisturbed = made("whole")
    with pytest.raises(KeyboardInterrupt):
        made("stopped", stop_after=2)
    assert not (tmp_path / "stopped" / FILES[1]).exists()
    shutil.copytree(tmp_path / "stopped", tmp_path / "other")
    assert made("other", lr=1e-3).resumed == []  # the checkpoint is of another rate
    resumed = made("stopped")
    assert resumed.resumed == [2]
    assert resumed.history == undisturbed.history
    assert not (tmp_path / "stopped" / "checkpoints").exists()
    for name in FILES:
        assert _hash(tmp_path / "whole" / name) == _hash(tmp_path / "stopped" / name)
