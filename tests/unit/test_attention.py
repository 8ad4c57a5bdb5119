"""Attention by segments, against the examples alone and against transformers' mask."""

import itertools
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from ablate.config.schema import Loss
from ablate.errors import UserError
from ablate.models.attention import NAME, Unsupported, attention, by_segments
from ablate.models.packed import Bounds, inputs, keeps_packed_apart, takes_segments
from ablate.objective import make_objective
from ablate.streams import Streams
from ablate.training.layout import chosen
from ablate.training.loop import train
from tests import toys

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT

LENGTHS = (9, 7, 7, 7, 4, 1)  # a run of equal ones, and an example of one token
EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64 sums in another order
SHAPE = {
    "vocab_size": toys.VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def made(kind: str, **changes: Any) -> Any:
    settings = SHAPE | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **settings)
        return transformers.AutoModelForCausalLM.from_config(config).double().eval()


def packed_row(seed: int = 0) -> tuple[Tensor, Tensor, Bounds]:
    ids = torch.randint(
        toys.VOCAB, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(seed)
    )
    positions = torch.cat([torch.arange(size) for size in LENGTHS])[None]
    return ids, positions, Bounds.of(LENGTHS)


def gradients(model: Any) -> list[Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


FLOAT32 = {"gemma", "cohere"}  # normalise in float32
LLAMA_LIKE = ("llama", "qwen2", "qwen3", "mistral", "gemma", "granite", "cohere", "olmo2")
MODELS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: made(name, num_key_value_heads=1) for name in LLAMA_LIKE},
    "gpt2": lambda: made("gpt2", attn_pdrop=0.0),
    "gpt_neox": lambda: made("gpt_neox"),
    "opt": lambda: made("opt", ffn_dim=24, word_embed_proj_dim=16, init_std=0.3, dropout=0.0),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_row_gives_each_example_its_own_logits_and_gradients(name: str) -> None:
    model = MODELS[name]()
    assert takes_segments(model, longest=max(LENGTHS))
    ids, positions, bounds = packed_row()
    weights = torch.linspace(0.1, 1.0, ids.numel(), dtype=torch.float64)
    with by_segments(model):
        logits = model(**inputs(model, ids, positions, bounds)).logits[0]
    (logits.log_softmax(-1)[:, 3] * weights).sum().backward()
    found, parts = gradients(model), []
    for one, weight in zip(ids[0].split(LENGTHS), weights.split(LENGTHS), strict=True):
        parts.append(model(input_ids=one[None], use_cache=False).logits[0])
        (parts[-1].log_softmax(-1)[:, 3] * weight).sum().backward()
    near = {"rtol": 1e-5, "atol": 1e-5} if name in FLOAT32 else EXACT
    torch.testing.assert_close(logits, torch.cat(parts), **near)
    for one, expected in zip(found, gradients(model), strict=True):
        torch.testing.assert_close(one, expected, **near)


def test_its_own_attention_is_back_after_the_block_and_after_an_error() -> None:
    model = peft.get_peft_model(toys.llama(), peft.LoraConfig(target_modules=["q_proj"]))
    with by_segments(model):
        assert model.config._attn_implementation == NAME
    with pytest.raises(KeyError), by_segments(model):
        raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_without_the_block_a_packed_row_is_separated_by_its_positions() -> None:
    model = toys.llama()
    ids, positions, bounds = packed_row()
    given = inputs(model, ids, positions, bounds)
    assert set(given) == {"input_ids", "position_ids", "use_cache"}
    with by_segments(model):
        segments = model(**inputs(model, ids, positions, bounds)).logits
    torch.testing.assert_close(model(**given).logits, segments, **EXACT)


@pytest.mark.parametrize("kind", ["bloom", "mpt", "gpt_neo", "gemma2"])
def test_a_model_with_an_attention_of_its_own_does_not_take_segments(kind: str) -> None:
    """ALiBi, no interface, a softcap."""
    changes: dict[str, Any] = {}
    if kind == "gpt_neo":
        changes = {"num_layers": 2, "attention_types": [[["global", "local"], 1]]}
    if kind == "mpt":
        changes = {"d_model": 16, "n_heads": 2, "n_layers": 2}
    model = made(kind, **changes)
    assert not takes_segments(model, longest=8)
    assert all(
        m.config._attn_implementation != NAME for m in model.modules() if hasattr(m, "config")
    )


def test_a_softcap_that_reaches_the_function_is_refused() -> None:
    model = made("gemma2", num_key_value_heads=1, head_dim=8)
    model.config._attn_implementation_internal = "sdpa"  # as if it claimed to be like the others
    assert not takes_segments(model, longest=8)


@pytest.mark.parametrize(("window", "longest", "taken"), [(8, 8, True), (8, 9, False)])
@pytest.mark.parametrize("kind", ["mistral", "cohere2", "gemma3_text"])
def test_a_window_is_no_hindrance_while_every_example_fits(
    kind: str, window: int, longest: int, taken: bool
) -> None:
    model = made(kind, num_key_value_heads=1, sliding_window=window, head_dim=8)
    model.config.sliding_window = window
    assert takes_segments(model, longest=longest) == taken


def test_a_window_that_only_the_layers_know_is_seen_too() -> None:
    model = made("mistral", num_key_value_heads=1, sliding_window=8)
    wide = transformers.AutoConfig.for_model("mistral", **SHAPE, sliding_window=None)
    attended = model.model.layers[0].self_attn
    assert attended.config.sliding_window == 8
    model.config.sliding_window = None
    attended.config = wide
    attended.config._attn_implementation_internal = NAME
    attended.config.sliding_window = 8
    ids, positions, bounds = packed_row()
    with by_segments(model), pytest.raises(Unsupported, match="a window of 8"):
        model(**inputs(model, ids, positions, bounds))


class Layer(nn.Module):
    is_causal = True


def states(H: int = 4, G: int = 2, T: int = sum(LENGTHS), D: int = 8) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(1, heads, T, D, dtype=torch.float64, generator=draw) for heads in (H, G, G)
    )


@pytest.mark.parametrize("scaling", [None, 0.7])
def test_the_function_is_softmax_of_scaled_products(scaling: float | None) -> None:
    """Against the formula, example by example and head by head, with grouped keys."""
    query, key, value = states()
    found, weights = attention(
        Layer(), query, key, value, None, scaling=scaling, **Bounds.of(LENGTHS).arguments()
    )
    assert weights is None
    ends = list(itertools.accumulate(LENGTHS, initial=0))
    for start, end in itertools.pairwise(ends):
        for head in range(4):
            q, k, v = query[0, head], key[0, head // 2], value[0, head // 2]
            products = q[start:end] @ k[start:end].T * (scaling or 8**-0.5)
            seen = torch.ones_like(products).tril().bool()
            expected = products.masked_fill(~seen, -torch.inf).softmax(-1) @ v[start:end]
            torch.testing.assert_close(found[0, start:end, head], expected, **EXACT)


def test_dropout_drops_attention_weights_and_keeps_their_mean() -> None:
    query, key, _ = states()
    ones = torch.ones(1, 2, sum(LENGTHS), 8, dtype=torch.float64)
    bounds = Bounds.of(LENGTHS).arguments()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = [attention(Layer(), query, key, ones, None, dropout=0.3, **bounds)[0]
                 for _ in range(400)]  # fmt: skip
    first = torch.stack(draws)[:, 0, 0]  # sees itself alone: 0 or 1 / 0.7
    assert {round(x, 6) for x in first.unique().tolist()} == {0.0, round(1 / 0.7, 6)}
    # 400 draws x 4 heads x 35 tokens; the variance of a mean of weights is at most .3 / .7
    assert torch.stack(draws).mean().item() == pytest.approx(1.0, abs=5 * (0.43 / 56_000) ** 0.5)


@pytest.mark.parametrize(
    "more",
    [
        {"softcap": 50.0},
        {"s_aux": torch.zeros(4)},
        {"position_bias": torch.zeros(1)},
        {"is_causal": False},
        {"sliding_window": 8},
        {"something_new": 1},
    ],
)
def test_what_it_does_not_compute_is_refused(more: dict[str, Any]) -> None:
    bounds = Bounds.of(LENGTHS).arguments()
    with pytest.raises(Unsupported):
        attention(Layer(), *states(), None, **bounds, **more)
    attention(Layer(), *states(), None, **bounds, **dict.fromkeys(more))


def test_autocast_reaches_the_states_as_it_reaches_torchs_own_attention() -> None:
    """Rotary positions leave queries in float32 beside values in bfloat16."""
    query, key, value = (x.float() for x in states())
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attention(
            Layer(), query, key, value.bfloat16(), None, **Bounds.of(LENGTHS).arguments()
        )
    assert found.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore")  # of the compiler, while it traces
def test_compiled_layers_are_compiled_once_for_all_lengths() -> None:
    """Recompiling takes half a minute on a GPU; with lengths as numbers every row would do it."""
    model = toys.llama(torch.float32, num_key_value_heads=1)
    counter = CompileCounter()
    for layer in model.model.layers:
        layer.compile(dynamic=True, backend=counter)
    frames = []
    with by_segments(model):
        for lengths in ((9, 7, 7), (8, 6, 5), (11, 4, 4, 3), (12, 2)):
            ids = torch.arange(sum(lengths))[None] % toys.VOCAB
            positions = torch.cat([torch.arange(size) for size in lengths])[None]
            found = model(**inputs(model, ids, positions, Bounds.of(lengths))).logits
            frames.append(counter.frame_count)
    assert frames == [frames[0]] * 4
    for layer in model.model.layers:
        layer._compiled_call_impl = None
    with by_segments(model):
        expected = model(**inputs(model, ids, positions, Bounds.of(lengths))).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("small", "share", "kept"), [(False, 0.01, False), (True, 0.01, True), (True, 0.3, False)]
)
def test_what_8_bits_round_differently_in_another_batch_is_no_leak(
    small: bool, share: float, kept: bool
) -> None:
    """A percent of noise where rows differ in size; a leak is 0.3 of the largest logit."""
    model = toys.llama(torch.float32)
    if small:
        weight = nn.Parameter(torch.zeros(1, dtype=torch.int8), requires_grad=False)
        model.register_parameter("quantised", weight)
    model.lm_head.register_forward_hook(
        lambda module, args, output: output * (1 + share * (output.shape[1] > 4))
    )
    assert keeps_packed_apart(model) == kept


# -- memory -----------------------------------------------------------------------------------


def kept_bytes(model: Any, examples: int, *, segments: bool) -> int:
    """Return the bytes that autograd keeps of a packed row of examples of 32 tokens."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    lengths = [32] * examples
    ids = torch.arange(32 * examples)[None] % toys.VOCAB
    positions = torch.arange(32).repeat(examples)[None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        if segments:
            with by_segments(model):
                output = model(**inputs(model, ids, positions, Bounds.of(lengths)))
        else:
            output = model(input_ids=ids, position_ids=positions, use_cache=False)
    assert output.logits.requires_grad
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(size for at, size in kept.items() if at not in weights)


def test_the_memory_of_a_packed_row_is_linear_in_its_tokens() -> None:
    model = toys.llama(torch.float32)
    by_segment = [kept_bytes(model, n, segments=True) for n in (8, 16, 64)]
    assert by_segment[1] == pytest.approx(2 * by_segment[0], rel=0.02)
    assert by_segment[2] == pytest.approx(8 * by_segment[0], rel=0.02)
    masked = [kept_bytes(model, n, segments=False) for n in (8, 64)]
    assert masked[1] > 20 * masked[0]  # the mask, in every layer


# -- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
def test_packed_and_padded_train_the_same_weights_in_float32(
    adapter: bool, checkpointing: bool
) -> None:
    """Twenty steps, micro-batches of one, of four and the whole step."""
    courses = []
    for layout, size in itertools.product(("padded", "packed"), (1, 4, None)):
        model: Any = toys.llama(torch.float32, num_key_value_heads=1)
        if adapter:
            config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=4)
            with Streams(0).global_torch("init"):
                model = peft.get_peft_model(model, config)
        result = train(
            model,
            toys.tokenised(toys.examples(40)),
            toys.train_settings(batch_size=8, epochs=4.0, max_steps=20, lr=1e-3),
            objective=make_objective(toys.masking("none"), 0.1, 1.0, Loss()),
            streams=Streams(0),
            execution=toys.execution(
                layout=layout, micro_batch_size=size, gradient_checkpointing=checkpointing
            ),
        )
        losses = torch.tensor([float(e["loss"]) for e in result.history])
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        courses.append((losses, weights))
    for losses, weights in courses[1:]:
        assert len(losses) == 20
        torch.testing.assert_close(losses, courses[0][0], rtol=1e-5, atol=0)
        torch.testing.assert_close(weights, courses[0][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "scope", "expected"),
    [
        (toys.llama, "batch", "packed"),
        (toys.llama, "microbatch", "padded"),
        (lambda: toys.llama(attention_dropout=0.1), "batch", "padded"),
        (lambda: dropping(toys.llama()), "batch", "padded"),
        (
            lambda: made("gpt_neo", num_layers=2, attention_types=[[["global"], 2]]),
            "batch",
            "padded",
        ),
    ],
)
def test_the_layout_on_a_cpu(model: Any, scope: str, expected: str) -> None:
    found, segments = chosen(
        model(),
        make_objective(toys.masking("none"), 0.1, 1.0, Loss(scope=scope)),
        toys.execution(layout="auto"),
        settings=toys.train_settings(),
        longest=30,
    )
    assert (found.layout, segments) == (expected, expected == "packed")


def dropping(model: Any) -> Any:
    config = peft.LoraConfig(target_modules=["q_proj"], lora_dropout=0.1)
    return peft.get_peft_model(model, config)


def test_packing_where_examples_would_see_each_other_is_refused() -> None:
    model = toys.llama()

    def mixed(module: Any, args: Any, output: Tensor) -> Tensor:
        return output + 0.01 * output.cumsum(1)

    model.model.norm.register_forward_hook(mixed)  # as a recurrent layer would
    assert not keeps_packed_apart(model)
    with pytest.raises(UserError, match=r"layout=packed: with this model"):
        train(
            model,
            toys.tokenised(toys.examples(4)),
            toys.train_settings(),
            objective=make_objective(toys.masking("none"), 0.1, 1.0, Loss()),
            streams=Streams(0),
            execution=toys.execution(layout="packed"),
        )
