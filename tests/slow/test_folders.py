"""Folders in the hub's own formats, made here: models of three families, data sets, a wheel."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from ablate import cli
from ablate.results.store import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]

TALK = [
    {
        "messages": [
            {"role": "user", "content": f"How many legs have {n} cats?"},
            {"role": "assistant", "content": f"They have {4 * n} legs."},
        ]
    }
    for n in range(60)
]
# Inserts system text of its own, as Qwen's does, and has role tags and terminators.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(folder, *, chat_template=None):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([json.dumps(row) for row in TALK], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


def model(family):
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=256)
        )
    kind, config = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "qwen": (Qwen2ForCausalLM, Qwen2Config),
    }[family]
    return kind(config(vocab_size=400, tie_word_embeddings=family == "qwen", **SMALL, **HEADS))


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model(request.param).save_pretrained(folder)
    tokenizer(folder, chat_template=CHATML if request.param == "qwen" else None)
    return folder, request.param


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """The rows as a `datasets` folder, as save_to_disk writes it."""
    folder = tmp_path_factory.mktemp("talk") / "rows"
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(TALK).save_to_disk(folder)
    return folder


def test_a_hub_folder_trains_and_scores(base, talk, tmp_path):
    folder, family = base
    template = "chat" if family == "qwen" else "plain"
    words = [
        "model=local", f"model.path={folder}", "dataset=local", f"dataset.path={talk}",
        f"dataset.template={template}", "adapter=lora,mora,full", "rank=2", "train.lr=1e-3",
        "masking=none", "plw=0.1", "train.max_steps=3", "evaluate=none", "report=false",
        "evaluate.tasks=[micro_questions]", "evaluate.limit=6", f"out={tmp_path}",
        "hydra/launcher=basic",
    ]  # fmt: skip
    assert cli.main(["sweep", *words]) == 0
    store = Store(tmp_path)
    assert len(store.recorded()) == 4  # three adapters and the base
    for key in store.recorded():
        counts = store.record(key)["data"]["counts"]
        assert counts["completion"] > 0
        assert ("special" in counts) == (family == "qwen")  # only that one has role tags
        # Boilerplate: the chat template's own system text, the plain template's one line break.
        system = counts["boilerplate"] / store.record(key)["data"]["rows"]
        assert system > 5 if family == "qwen" else system == 1


def test_a_wheel_finds_its_configuration_in_an_empty_folder(tmp_path):
    """Built, unpacked and run away from the checkout; a user's own analysis.py must not win."""
    build = [sys.executable, "-m", "build", "--no-isolation", "-o", str(tmp_path), "."]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")  # one from the other
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "CHANGELOG.md", "LICENSE", "docs/index.md", "Makefile"} <= names
    site, empty = tmp_path / "site", tmp_path / "empty"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert all((site / package / "py.typed").is_file() for package in ("ablate", "analysis"))
    empty.mkdir()
    (empty / "analysis.py").write_text("raise RuntimeError('not this one')")
    environment = os.environ | {"PYTHONPATH": str(site), "ABLATE_CACHE": str(tmp_path / "cache")}
    code = "import ablate, sys; print(ablate.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True
    )
    assert str(site) in where.stdout
    words = ["-m", "ablate", "-m", "train.lr=1e-3", "train.max_steps=2", "adapter=lora,full"]
    words += ["evaluate=none", "masking=none", "plw=0.5,1", "hydra/launcher=basic"]
    done = subprocess.run(
        [sys.executable, *words], cwd=empty, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in empty.iterdir()) == ["analysis.py", "results"]
    assert (empty / "results" / "default" / "report" / "index.html").exists()
