"""A base model read from its files: against transformers' own modules, and every refusal."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import ablate.micro
from ablate.config.schema import Model
from ablate.errors import UserError
from ablate.models import files
from ablate.models.files import NO_LIMIT, file_hash, linear_shapes, resolve, tokenizer_file

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 11,
    "max_position_embeddings": 64,
}
TENSORS = {
    "model.embed_tokens.weight": (11, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.mlp.up_proj.bias": (12,),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.norm.weight": (8,),
    "lm_head.weight": (11, 8),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA))
    (path / "tokenizer.json").write_text("{}")
    tensors = {name: np.zeros(shape, np.float32) for name, shape in TENSORS.items()}
    save_file(tensors, path / "model.safetensors")
    return path


def local(path):
    return Model(name="local", source="local", path=str(path))


def test_reads_a_folder(folder):
    found = resolve(local(folder))
    assert found.folder == folder
    assert found.linear_shapes == {
        "model.layers.0.mlp.up_proj": (12, 8),
        "model.layers.0.self_attn.q_proj": (8, 8),
    }
    assert found.parameters == sum(math.prod(shape) for shape in TENSORS.values())
    assert (found.vocab_size, found.max_positions) == (11, 64)
    assert found.architecture == "LlamaForCausalLM"
    assert tokenizer_file(folder).name == "tokenizer.json"


PEERS = {
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
    "qwen2": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
              "num_key_value_heads": 1, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 16, "n_layer": 11, "n_head": 2, "n_positions": 32},
    "gpt_neox": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_agrees_with_the_model_that_transformers_builds(tmp_path, kind, sharded):
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    layers = {} if kind == "gpt2" else {"num_hidden_layers": 2}
    settings = AutoConfig.for_model(kind, vocab_size=40, **PEERS[kind], **layers)
    model = AutoModelForCausalLM.from_config(settings)
    model.save_pretrained(tmp_path, max_shard_size="8KB" if sharded else "1GB")
    (tmp_path / "tokenizer.json").write_text("{}")
    found = resolve(local(tmp_path))
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    expected = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            expected[name] = tuple(module.weight.shape)[::-1]
        elif isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
            expected[name] = tuple(module.weight.shape)
    assert found.linear_shapes == expected
    assert found.parameters == model.num_parameters()
    assert found.vocab_size == 40


def test_names_without_the_models_prefix_are_completed():
    assert linear_shapes({"h.0.attn.c_attn.weight": (8, 24)}, "gpt2") == {
        "transformer.h.0.attn.c_attn": (24, 8)
    }
    assert linear_shapes(
        {"layers.10.up.weight": (3, 2), "layers.9.up.weight": (3, 2)}, "llama"
    ) == {
        "model.layers.9.up": (3, 2),
        "model.layers.10.up": (3, 2),
    }


def test_old_buffers_are_no_parameters(folder):
    before = resolve(local(folder)).parameters
    tensors = {name: np.zeros(shape, np.float32) for name, shape in TENSORS.items()}
    mask = np.zeros((1, 1, 4, 4), np.float32)
    save_file(tensors | {"model.layers.0.attn.bias": mask}, folder / "model.safetensors")
    assert resolve(local(folder)).parameters == before


def test_positions_without_a_last_one(folder):
    settings = {k: v for k, v in LLAMA.items() if k != "max_position_embeddings"}
    (folder / "config.json").write_text(json.dumps(settings))
    assert resolve(local(folder)).max_positions == NO_LIMIT


# -- the hash -----------------------------------------------------------------------------------


def test_hash_follows_the_content_alone(folder, tmp_path):
    first = resolve(local(folder)).content_hash
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "README.md").write_text("a note")
    assert resolve(local(copy)).content_hash == first
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        data = bytearray((copy / name).read_bytes())
        changed = bytes(data + b" ") if name.endswith("json") else bytes(data[:-1] + b"\x01")
        (copy / name).write_bytes(changed)
        found = resolve(local(copy)).content_hash
        assert found != first, name
        first = found


def test_a_file_is_hashed_once(folder, monkeypatch):
    path = folder / "model.safetensors"
    first = file_hash(path)
    monkeypatch.setattr(files.hashlib, "file_digest", None)  # calling it would fail
    assert file_hash(path) == first


def test_unwritable_cache_only_costs_time(folder, monkeypatch, tmp_path):
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "hashes").write_text("in the way")
    assert len(file_hash(folder / "config.json")) == 64


def test_torch_stays_out():
    code = "import sys, ablate.models.files; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- refusals -----------------------------------------------------------------------------------


def settings(**changes):
    return lambda folder: (folder / "config.json").write_text(json.dumps(LLAMA | changes))


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def remove(name):
    return lambda folder: (folder / name).unlink()


def old_format(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lost_shard(folder):
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "part-2.safetensors"}}'
    )


REFUSED = [
    (remove("tokenizer.json"), "no tokenizer.json in"),
    (remove("config.json"), "no config.json in"),
    (remove("model.safetensors"), "no model.safetensors in"),
    (old_format, "pytorch_model.bin alone is not read"),
    (lost_shard, "names part-2.safetensors, which is not there"),
    (write("config.json", "{"), "config.json is not valid JSON"),
    (write("config.json", "[]"), "config.json is not a table of settings"),
    (write("model.safetensors", "x" * 100), "is not a safetensors file"),
    (write("model.safetensors", ""), "is not a safetensors file"),
    (settings(architectures=None), "names no architecture"),
    (settings(vocab_size=None), "gives no vocab_size"),
    (settings(architectures=["T5ForConditionalGeneration"]), "is an encoder-decoder"),
    (settings(is_encoder_decoder=True), "is an encoder-decoder"),
    (settings(architectures=["BertForMaskedLM"], model_type="bert"), "is an encoder "),
    (settings(architectures=["BertLMHeadModel"], model_type="bert"), "is an encoder "),
    (settings(architectures=["LlamaModel"]), "is no causal language model"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_in_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError) as caught:
        resolve(local(folder))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        resolve(local(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file, not a folder"):
        resolve(local(tmp_path / "file"))


def test_unknown_micro_model():
    with pytest.raises(UserError, match=r"model.path=micro_9: not one of"):
        resolve(Model(name="m", source="micro", path="micro_9"))


@pytest.mark.parametrize("reason", ["offline", "no such repository"])
def test_hub_model_that_cannot_be_had(monkeypatch, reason):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*arguments, **options):
        raise LocalEntryNotFoundError(f"{reason}\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr("ablate.hub.unreachable", lambda: "")
    with pytest.raises(UserError) as caught:
        resolve(Model(name="hub", source="hub", path=f"me/{reason[:3]}", revision="abc"))
    assert str(caught.value) == (
        f"model.path=me/{reason[:3]} at revision abc: cannot be downloaded ({reason})"
    )


def test_hub_model_that_is_here_needs_no_network(folder, monkeypatch):
    import huggingface_hub

    def here(repository, *, local_files_only=False, **options):
        assert local_files_only, "asked the network"
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", here)
    found = resolve(Model(name="hub", source="hub", path="me/here", revision="abc"))
    assert found == resolve(local(folder))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_hidden_layers": 1000}, "num_hidden_layers=1000: the weights have 3 blocks"),
        ({"num_hidden_layers": 2}, "num_hidden_layers=2: the weights have 3 blocks"),
        ({"hidden_size": 10**9}, "hidden_size=1000000000: no weight has this size"),
        ({"num_attention_heads": 7}, "num_attention_heads=7: the query projections have 64"),
        ({"num_attention_heads": 0}, "num_attention_heads=0: the query projections have 64"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(settings, said, tmp_path):
    """transformers would draw what the weights lack at random, or fail in a worker."""
    shipped = Path(ablate.micro.__file__).parent / "checkpoints" / "micro_0"
    folder = shutil.copytree(shipped, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(UserError, match=said):
        resolve(Model(name="local", source="local", path=str(folder)))
