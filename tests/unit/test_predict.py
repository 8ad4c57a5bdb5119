"""What a model predicts at the targets: as logits, and as the input of its output layer."""

from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

from ablate.config.schema import Loss
from ablate.data.batches import micro_batches
from ablate.objective import Objective, make_objective
from ablate.roles import Role
from ablate.training import predict
from ablate.training.loss import TokenLossModel
from ablate.training.predict import HeadInput, head_input, logits_of
from ablate.training.weighed import Weighed, weigh
from tests import toys

ROWS = toys.examples()
EXACT = {"rtol": 1e-12, "atol": 1e-13}  # float64 sums in another order


def objective_with(mode: str, **loss: Any) -> Objective:
    return make_objective(toys.masking(mode), 0.25, 1.0, Loss(**loss))


def weighed(objective: Objective, layout: str = "padded", rows: Any = ROWS) -> Weighed:
    (part,) = micro_batches(
        toys.tokenised(rows),
        np.arange(len(rows)),
        objective=objective,
        execution=toys.execution(layout=layout),
    )
    return weigh(part, objective)


def small(name: str, **changes: Any) -> Any:
    """Return a tiny float64 model of any decoder architecture, its dropout off."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(
        name, **shape | {"vocab_size": toys.VOCAB, "initializer_range": 0.3} | changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).double().eval()


LLAMA_LIKE = {"intermediate_size": 24, "num_key_value_heads": 1}
ARCHITECTURES = {
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "gemma2": LLAMA_LIKE | {"head_dim": 8, "final_logit_softcapping": 3.0, "pad_token_id": 0},
    "granite": LLAMA_LIKE | {"logits_scaling": 4.0},
    "cohere": LLAMA_LIKE | {"logit_scale": 0.25},
    "gpt2": {"n_positions": 256},
    "gpt_neox": {"intermediate_size": 24},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 256},
}
LEAKY = ("opt",)  # ignores positions: see test_model
ROUNDING = {"gemma2": 1e-5}  # its attention takes the softmax in float32; a leak is 0.3


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, "padded") for name in ARCHITECTURES),
        *((name, "packed") for name in ARCHITECTURES if name not in LEAKY),
    ],
)
def test_selected_logits_are_those_of_each_row_alone(name: str, layout: str) -> None:
    """Whatever a model does to its logits afterwards, padded and packed, no row sees another."""
    model = small(name, **ARCHITECTURES[name])
    assert_logits_as_alone(model, layout, tolerance=ROUNDING.get(name, 1e-10))


def assert_logits_as_alone(model: Any, layout: str, tolerance: float = 1e-10) -> None:
    found_KV = logits_of(model, weighed(objective_with("instruction"), layout))
    rows = sorted(ROWS, key=lambda row: -len(row[0]))
    alone = []
    for ids, roles in rows:
        logits_LV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        alone += [logits_LV[len(logits_LV) - len(ids) + t - 1] for t in completion(roles)]
    torch.testing.assert_close(found_KV, torch.stack(alone), rtol=0, atol=tolerance)


def completion(roles: Any) -> list[int]:
    return [t for t, role in enumerate(roles) if role == Role.COMPLETION]


ADAPTERS = {
    "lora": peft.LoraConfig(target_modules="all-linear", init_lora_weights=False),
    "lora-head": peft.LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False),
    "trained-head": peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "prompt-tuning": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT 0.21
@pytest.mark.parametrize("name", ADAPTERS)
def test_selected_logits_under_an_adapter(name: str) -> None:
    model = peft.get_peft_model(toys.llama(), ADAPTERS[name]).double().eval()
    assert_logits_as_alone(model, "padded")


# --- the input of the head

SOFTCAPPED = ("gemma2",)
SCALED = {"granite": 0.25, "cohere": 0.25}
ADAPTED_HEADS = ("lora-head", "trained-head")


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep no logits, however few they are, and make them in tiles of five rows."""
    monkeypatch.setattr(predict, "TILED_FROM", 0)
    monkeypatch.setattr("ablate.training.head.TILE", {"cpu": 5 * toys.VOCAB})
    monkeypatch.setattr("ablate.training.head.FEWEST_ROWS", 1)


def both_ways(
    model: Any, work: Weighed, objective: Objective | None = None
) -> tuple[list[Tensor], ...]:
    """Return the sums and all gradients, from all logits and in tiles."""
    found = []
    for least in (10**9, 0):
        predict.TILED_FROM = least
        loss = TokenLossModel(model, objective)(work, with_grad_norm=True)
        params = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss.total / 3, params, allow_unused=True)
        found.append([loss.sums_S, *(g for g in grads if g is not None)])
    return tuple(found)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradient_in_tiles_are_those_of_all_logits(name: str) -> None:
    model = small(name, **ARCHITECTURES[name])
    work = weighed(objective_with("none"))
    found = head_input(model, work)
    assert (found is None) == (name in SOFTCAPPED)
    if found:
        assert found.head.scale == SCALED.get(name, 1.0)
    logits, tiles = both_ways(model, work, objective_with("none", label_smoothing=0.1))
    torch.testing.assert_close(tiles, logits, **EXACT)


@pytest.mark.usefixtures("tiled")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT 0.21
@pytest.mark.parametrize("name", ADAPTERS)
def test_tiles_under_an_adapter(name: str) -> None:
    """Virtual tokens in front stay, an adapter on the head goes the way of all logits."""
    model = peft.get_peft_model(toys.llama(), ADAPTERS[name]).double().eval()
    work = weighed(objective_with("none"))
    assert (head_input(model, work) is None) == (name in ADAPTED_HEADS)
    logits, tiles = both_ways(model, work)
    torch.testing.assert_close(tiles, logits, **EXACT)


@pytest.mark.usefixtures("tiled")
def test_tied_embeddings_get_both_gradients() -> None:
    model = small("llama", **LLAMA_LIKE, tie_word_embeddings=True)
    logits, tiles = both_ways(model, weighed(objective_with("none"), "packed"))
    torch.testing.assert_close(tiles, logits, **EXACT)


@pytest.mark.usefixtures("tiled")
def test_a_batch_without_weight_in_tiles_has_loss_and_gradient_zero() -> None:
    silent = [([1, 2, 3, 4], [Role.SPECIAL] * 4)]
    model = toys.llama()
    work = weighed(objective_with("instruction"), rows=silent)
    assert isinstance(predict.predict(model, work), HeadInput)
    total = TokenLossModel(model)(work).total
    assert total.item() == 0
    grads = torch.autograd.grad(total, list(model.parameters()))
    assert not any(g.any() for g in grads)


def test_few_logits_are_kept_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, work = toys.llama(), weighed(objective_with("none"))
    size = len(work.index_K) * toys.VOCAB
    for least, kind in ((size, HeadInput), (size + 1, Tensor)):
        monkeypatch.setattr(predict, "TILED_FROM", least)
        assert isinstance(predict.predict(model, work), kind)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda x: x / 13, 1 / 13),
        (lambda x: (x * 3).float(), 3.0),
        (
            lambda x: torch.tanh(x.float() / 500) * 500,
            None,
        ),  # not seen in small logits
        (lambda x: x + 1, None),
        (lambda x: x.log_softmax(-1), None),
        (lambda x: x.masked_fill(torch.arange(x.shape[-1]) == 7, -torch.inf), None),
        (lambda x: x[..., :-1], None),
        (lambda x: x * 0, None),
    ],
)
def test_what_a_model_does_to_its_logits_is_noticed(change: Any, kept: float | None) -> None:
    model = toys.llama()
    model.register_forward_hook(lambda _m, _a, out: setattr(out, "logits", change(out.logits)))
    found = head_input(model, weighed(objective_with("none")))
    assert (found and found.head.scale) == (kept and pytest.approx(kept, rel=1e-15))


def test_a_head_that_is_more_than_a_product_predicts_logits() -> None:
    work = weighed(objective_with("none"))
    parametrised, replaced = toys.llama(), toys.llama()
    torch.nn.utils.parametrizations.weight_norm(parametrised.lm_head)
    replaced.lm_head.forward = lambda x: x @ replaced.lm_head.weight.T
    assert head_input(parametrised, work) is None
    assert head_input(replaced, work) is None
    assert "forward" not in vars(toys.llama().lm_head)
