"""Base models with random weights: what they are made of, once, and what is refused."""

import filecmp
import math
from dataclasses import replace

import pytest
import torch

from ablate.config.schema import Model
from ablate.errors import UserError
from ablate.models import untrained
from ablate.models.files import resolve
from ablate.models.folders import is_here
from ablate.models.load import load

SHAPE = {
    "model_type": "llama", "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.05, "tie_word_embeddings": True,
}  # fmt: skip
MODEL = Model(name="mine", source="untrained", path="micro_0", shape=SHAPE)
MICRO = Model(name="micro_0", source="micro", path="micro_0")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(untrained, "cache_dir", lambda: tmp_path)
    return tmp_path


def test_it_has_the_shape_that_was_given_and_the_tokenizer_that_was_named():
    assert is_here(MODEL)
    files, base = resolve(MODEL), resolve(MICRO)
    assert (files.width, files.blocks, files.vocab_size, files.max_positions) == (32, 2, 1024, 64)
    assert filecmp.cmp(files.folder / "tokenizer.json", base.folder / "tokenizer.json", False)
    assert files.content_hash != base.content_hash


def test_its_weights_are_drawn_and_predict_nothing():
    model = load(resolve(MODEL))
    drawn = torch.cat([w.detach().flatten() for w in model.parameters() if w.ndim == 2])
    assert float(drawn.std()) == pytest.approx(SHAPE["initializer_range"], rel=0.02)
    assert abs(float(drawn.mean())) < 0.001
    ids = torch.randint(3, 1024, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)
    assert loss == pytest.approx(math.log(1024), abs=0.3)


def test_it_is_made_once_and_the_same_everywhere(cache, tmp_path_factory, monkeypatch):
    first = resolve(MODEL)
    monkeypatch.setattr(untrained, "_draw", None)  # what is there is not made again
    assert resolve(replace(MODEL, name="other")).folder == first.folder
    monkeypatch.undo()
    other = tmp_path_factory.mktemp("other")
    monkeypatch.setattr(untrained, "cache_dir", lambda: other)
    again = resolve(MODEL)
    assert again.folder != first.folder
    assert again.content_hash == first.content_hash
    assert not list(other.glob("untrained/.draft*"))


def test_another_shape_is_another_model():
    wider = replace(MODEL, shape=SHAPE | {"hidden_size": 64})
    assert resolve(wider).content_hash != resolve(MODEL).content_hash


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"path": "micro_9"}, "model.path=micro_9: a tokenizer is that of OWNER/NAME"),
        ({"path": "nobody/nothing"}, "model.path=nobody/nothing: is not on this machine"),
        ({"shape": SHAPE | {"model_type": "lama"}}, "model.shape: no causal language model"),
        ({"shape": {}}, "model.shape={}: must be given with model.source=untrained"),
    ],
)
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(changed, said, cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=said) as caught:
        resolve(replace(MODEL, **changed))
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("untrained/*"))
