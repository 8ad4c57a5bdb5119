from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ablate.config import schema
from ablate.errors import UserError
from ablate.models import files as model_files
from ablate.models.initial import initialise
from ablate.models.load import checkpointing, load, load_tokenizer
from ablate.models.packed import keeps_packed_apart
from ablate.streams import Streams
from tests import toys


def saved(folder: Path, model: Any) -> model_files.ModelFiles:
    """Return the files of `model` saved in the hub's format, with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models

    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(toys.VOCAB)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w1"
    )
    tokenizer.save_pretrained(folder)
    level = schema.Model(name="toy", source="local", path=str(folder))
    return model_files.resolve(level)


def test_a_loaded_base_is_a_copy_of_what_was_saved(tmp_path: Path) -> None:
    base = toys.llama(torch.float32, tie_word_embeddings=True)
    files = saved(tmp_path, base)
    first = load(files)
    for name, weight in base.state_dict().items():
        assert torch.equal(first.state_dict()[name], weight)
    with torch.no_grad():
        first.lm_head.weight += 1
    assert first.model.embed_tokens.weight is first.lm_head.weight  # still tied
    assert torch.equal(load(files).lm_head.weight, base.lm_head.weight)


def test_a_folder_that_changed_is_read_again(tmp_path: Path) -> None:
    before = load(saved(tmp_path, toys.llama(torch.float32)))
    changed = toys.llama(torch.float32)
    with torch.no_grad():
        changed.lm_head.weight += 1
    after = load(saved(tmp_path, changed))
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)


def test_half_precision_files_are_loaded_in_float32(tmp_path: Path) -> None:
    files = saved(tmp_path, toys.llama(torch.bfloat16))
    assert {p.dtype for p in load(files).parameters()} == {torch.float32}


def test_a_chat_template_file_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    saved(tmp_path, toys.llama(torch.float32))
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0].content }} w1")
    tokenizer = load_tokenizer(tmp_path, str(template))
    messages = [{"role": "user", "content": "w3"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "w3 w1"
    assert load_tokenizer(tmp_path).chat_template is None


def test_what_is_no_model_is_told_in_one_line(tmp_path: Path) -> None:
    files = saved(tmp_path, toys.llama(torch.float32))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no causal language model") as caught:
        load(files)
    assert "\n" not in str(caught.value)


def test_a_new_model_is_a_function_of_its_stream() -> None:
    settings = toys.llama().config
    one, same, other = (initialise(settings, streams=Streams(s)) for s in (0, 0, 1))
    torch.manual_seed(0)
    again = initialise(settings, streams=Streams(0))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight.std().item() == pytest.approx(settings.initializer_range, rel=0.1)


@pytest.mark.parametrize("scale", [0.02, 0.3])
def test_who_keeps_packed_examples_apart(scale: float) -> None:
    assert keeps_packed_apart(toys.llama(torch.float32, initializer_range=scale))
    opt = transformers.OPTForCausalLM(
        transformers.OPTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            word_embed_proj_dim=16,
            vocab_size=toys.VOCAB,
            init_std=scale,
        )
    )
    assert not keeps_packed_apart(opt)


def test_checkpointing_is_on_inside_the_block_alone() -> None:
    model = toys.llama()

    def on() -> bool:
        return any(getattr(m, "gradient_checkpointing", False) for m in model.modules())

    with checkpointing(model, True):
        assert on()
    assert not on()
