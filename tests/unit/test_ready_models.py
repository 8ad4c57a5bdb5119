"""Ready models: sizes without files, equal to the published ones and to those of real files."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from ablate.adapters import build, compatibility, registry
from ablate.config.schema import Model, Placement
from ablate.errors import UserError
from ablate.evaluate import tasks_index
from ablate.models import shapes
from ablate.models.files import resolve
from ablate.models.load import load
from ablate.paths import conf_dir
from ablate.streams import Streams
from tests import levels

# Parameters as hub cards give them; a model whose card rounds has its paper's count below.
PUBLISHED = {
    "smollm2_135m": 134_515_008, "smollm2_360m": 361_821_120, "smollm2_1_7b": 1_711_376_384,
    "smollm3_3b": 3_075_098_624, "llama_1_7b": 6_738_415_616, "llama_2_7b": 6_738_415_616,
    "llama_2_13b": 13_015_864_320, "llama_3_1_8b": 8_030_261_248, "llama_3_2_1b": 1_235_814_400,
    "llama_3_2_3b": 3_212_749_824,
    "qwen_2_5_0_5b": 494_032_768, "qwen_2_5_1_5b": 1_543_714_304, "qwen_2_5_3b": 3_085_938_688,
    "qwen_2_5_7b": 7_615_616_512, "qwen_3_0_6b": 596_049_920, "qwen_3_1_7b": 1_720_574_976,
    "qwen_3_4b": 4_022_468_096, "qwen_3_8b": 8_190_735_360, "gemma_2_2b": 2_614_341_888,
    "gemma_2_9b": 9_241_705_984, "gemma_3_270m": 268_098_176, "gemma_3_1b": 999_885_952,
    "mistral_7b": 7_248_023_552, "olmo_2_1b": 1_484_916_736, "olmo_2_7b": 7_298_617_344,
    "pythia_70m": 70_426_624, "pythia_160m": 162_322_944, "pythia_410m": 405_334_016,
    "pythia_1b": 1_011_781_632, "pythia_1_4b": 1_414_647_808, "pythia_2_8b": 2_775_208_960,
    "pythia_6_9b": 6_857_302_016,
}  # fmt: skip
# Outside embedding and head, in millions (Pythia: exactly), as papers and cards have them:
# arXiv 2408.00118 and 2503.19786, table 1 of both; 2304.01373; cards of Qwen 2.5 and Qwen 3.
OUTSIDE = {
    "gemma_2_2b": 2024, "gemma_2_9b": 8324, "gemma_3_270m": 100, "gemma_3_1b": 698,
    "gemma_3_4b": 3209, "qwen_2_5_0_5b": 360, "qwen_2_5_1_5b": 1310, "qwen_2_5_3b": 2770,
    "qwen_2_5_7b": 6530, "qwen_3_0_6b": 440, "qwen_3_1_7b": 1400, "qwen_3_4b": 3600,
    "pythia_70m": 18.915328, "pythia_160m": 85.056, "pythia_410m": 302.311424,
    "pythia_1b": 805.736448, "pythia_1_4b": 1208.602624, "pythia_2_8b": 2517.65248,
    "pythia_6_9b": 6444.163072,
}  # fmt: skip
UNTIED = {"llama_1_7b", "llama_2_7b", "llama_2_13b", "llama_3_1_8b", "qwen_2_5_7b", "qwen_3_8b",
          "mistral_7b", "olmo_2_1b", "olmo_2_7b"}  # fmt: skip
FILES = sorted((conf_dir() / "model").glob("*.yaml"))
READY = {
    f.stem: read
    for f in FILES
    if (read := yaml.safe_load(f.read_text())).get("shape") and read["source"] == "hub"
}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
GATED = {"gate_proj", "up_proj", "down_proj"}
PYTHIA = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def level(name: str) -> Model:
    return Model(name=name, **READY[name])


def test_every_ready_model_has_a_published_count() -> None:
    assert set(READY) == {*PUBLISHED, "gemma_3_4b"}


def test_the_page_lists_every_ready_level() -> None:
    page = (conf_dir().parent / "docs" / "ready.md").read_text()
    suites = ("open_llm", "commonsense", "math", "code", "ifeval", "forgetting")
    data = [
        f.stem for f in (conf_dir() / "dataset").glob("*.yaml") if "published:" in f.read_text()
    ]
    assert [name for name in (*READY, *suites, *data) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", READY)
def test_sizes_are_the_published_ones(name: str) -> None:
    found = shapes.from_shape(level(name))
    if name in PUBLISHED:
        assert found.parameters == PUBLISHED[name]
    if name in OUTSIDE:
        outside, told = (found.parameters - found.embedding_parameters) / 1e6, OUTSIDE[name]
        exact = 1e-6 if name.startswith("pythia") else 0.013 * told  # to two digits, or one
        assert abs(outside - told) <= exact
    tied = not (name in UNTIED or name.startswith("pythia"))
    assert found.embedding_parameters == found.vocab_size * found.width * (1 if tied else 2)
    assert found.blocks == READY[name]["shape"]["num_hidden_layers"]
    assert found.width == READY[name]["shape"]["hidden_size"]
    leaves = {module.rpartition(".")[2] for module in found.linear_shapes}
    assert leaves == (PYTHIA if name.startswith("pythia") else ATTENTION | GATED)


@pytest.mark.parametrize("name", READY)
def test_a_revision_is_a_commit(name: str) -> None:
    assert len(level(name).revision or "") == 40


SOURCE = re.compile(r"arXiv|hub card|cards of copies|unverified|counted")


def test_numbers_name_their_source() -> None:
    for name in READY:
        assert SOURCE.search((conf_dir() / "model" / f"{name}.yaml").read_text()), name
    for file in (conf_dir() / "dataset").glob("*.yaml"):
        level, text = yaml.safe_load(file.read_text()), file.read_text()
        above, _, told = text.partition("published:")
        if "published" in level:
            assert SOURCE.search(above[-300:] + told), file.name
        if level["source"] == "hub" and file.stem != "hub":
            pinned = re.fullmatch(r"[0-9a-f]{40}", level.get("revision") or "")
            assert pinned or "No commit was found to pin" in " ".join(text.split("\n# ")), file.name
    assert all(SOURCE.search(row["source"]) for row in tasks_index.published().values())


@pytest.mark.slow
@pytest.mark.parametrize("name", READY)
def test_what_is_stored_is_what_transformers_builds(name: str) -> None:
    stored = shapes._stored()[shapes._key(READY[name]["shape"])]
    assert stored == json.loads(json.dumps(shapes.build(READY[name]["shape"])))


# --- the same architectures, small: files, memory and adapters agree

SMALL = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0}  # fmt: skip
KINDS = {str(ready["shape"]["model_type"]): ready["shape"] for ready in READY.values()}
KINDS["phi3"] = {"model_type": "phi3", "tie_word_embeddings": False}


def small(kind: str) -> dict[str, Any]:
    shape = {k: v for k, v in KINDS[kind].items() if k not in SMALL} | SMALL
    grouped = {"num_key_value_heads": 2} if "num_key_value_heads" in shape else {}
    narrow = {"head_dim": 8} if "head_dim" in shape else {}
    return shape | grouped | narrow


def in_memory(kind: str) -> Any:
    shape = small(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(shape.pop("model_type"), **shape)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_shape_says_what_the_files_say(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    model = in_memory(kind)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    files = resolve(Model(name="m", source="local", path=str(tmp_path / "model")))
    asked = Model(name="m", source="hub", path="a/b", shape=small(kind))
    found = shapes.from_shape(asked)
    for field in dataclasses.fields(files):
        if field.name not in ("folder", "content_hash"):
            assert getattr(found, field.name) == getattr(files, field.name), field.name
    assert found.linear_shapes == build.linear_shapes(model)
    assert found == shapes.from_shape(asked)  # from the cache
    assert not found.folder.exists()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_of_a_model_that_also_sees_the_text_part_is_the_model(tmp_path: Path) -> None:
    """Gemma 3 from 4B on: an adapter on every linear layer must not reach the vision encoder."""
    see = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
           "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
    text = {k: v for k, v in small("gemma3_text").items() if k != "model_type"}
    whole = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=see, mm_tokens_per_image=4)
    ).eval()
    whole.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    found = resolve(Model(name="m", source="local", path=str(tmp_path)))
    part = load(found)
    assert type(part).__name__ == found.architecture == "Gemma3ForCausalLM"
    assert found.linear_shapes == build.linear_shapes(part)
    assert found.parameters == part.num_parameters() < whole.num_parameters()
    ids = torch.arange(1, 13)[None]
    assert torch.equal(part(input_ids=ids).logits, whole(input_ids=ids).logits)


def test_a_shape_of_no_language_model_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"model.shape: no causal language model"):
        shapes.from_shape(Model(name="m", source="hub", path="a/b", shape={"model_type": "xyz"}))


QUICK = ("full", "lora", "mora", "ia3", "layernorm")


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        pytest.param(k, a, marks=[] if a in QUICK else [pytest.mark.slow])
        for k in KINDS
        for a in levels.LEVELS
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_adapter_trains_as_many_as_a_plan_says(kind: str, adapter: str) -> None:
    """Built by PEFT on a small model of each architecture, fused projections among them."""
    model, cell = in_memory(kind), levels.cell(adapter)
    found, data = build.linear_shapes(model), levels.DATA
    try:
        compatibility.check(cell, architecture=type(model).__name__, shapes=found)
        registry.check(cell, found)
    except UserError:
        pytest.skip("refused on this architecture")
    ends = sum(p.numel() for p in build.end_parameters(model))
    norms = [model.get_submodule(name) for name in build.norms(model)]
    sizes = levels.LiveSizes(
        linear_shapes=found,
        parameters=sum(p.numel() for p in model.parameters()),
        embedding_parameters=ends,
        norm_parameters=sum(p.numel() for norm in norms for p in norm.parameters()),
    )
    built = build.apply(model, cell, streams=Streams(0), data=data)
    count = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert count == registry.trainable_parameters(cell, sizes)


@pytest.mark.parametrize(
    ("kind", "asked", "told"),
    [
        ("gpt_neox", "q_proj", "query_key_value"),
        ("phi3", "v_proj", "qkv_proj"),
        ("phi3", "gate_proj", "gate_up_proj"),
    ],
)
def test_a_projection_inside_a_fused_matrix_is_told(kind: str, asked: str, told: str) -> None:
    found = build.linear_shapes(in_memory(kind))
    placement = Placement(name="p", modules=(asked,))
    with pytest.raises(UserError, match=f"placement.modules={asked}: .* {told}, .* name that"):
        registry.targets(placement, found)
    assert told in registry.fused(found)
    assert not registry.fused(build.linear_shapes(in_memory("llama")))
