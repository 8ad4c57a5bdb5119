"""Measures against closed forms, PEFT's own merging and a model that knows its rows by heart."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from ablate.config.schema import Evaluate, Execution
from ablate.data.specials import Stop
from ablate.errors import UserError
from ablate.evaluate import measures, spectrum
from ablate.evaluate.tasks_index import MEASURES
from ablate.roles import Role
from tests import toys

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def adapted(base, **changes):
    """`base` inside an adapter whose change is not zero."""
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(
            copy.deepcopy(base), LoraConfig(**settings | changes, init_lora_weights=False)
        )
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.data.mul_(1.5)
    return model


# -- weight distance ----------------------------------------------------------------------------


def test_a_scaled_model_is_as_far_as_it_was_scaled():
    base = toys.llama()
    moved = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.25)
    found = measures.weight_distance(moved, base)
    assert found["all"] == (pytest.approx(0.25), len(list(base.parameters())))
    assert found["linear"] == (pytest.approx(0.25), 14)  # two layers of seven matrices


def test_one_moved_weight_counts_against_all():
    base = toys.llama()
    moved = copy.deepcopy(base)
    with torch.no_grad():
        moved.model.embed_tokens.weight[3, 5] += 2.0
    total = sum(float((p.detach() ** 2).sum()) for p in base.parameters())
    found = measures.weight_distance(moved, base)
    assert found["all"][0] == pytest.approx(2.0 / np.sqrt(total))
    assert found["linear"][0] == 0


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_an_adapters_distance_is_that_of_the_merged_model(changes):
    base = toys.llama()
    model = adapted(base, **changes)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = measures.weight_distance(model, base)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    merged = dict(model.merge_and_unload().named_parameters())
    pairs = [(merged[name], weight) for name, weight in base.named_parameters()]
    far = sum(float(((new - old).detach() ** 2).sum()) for new, old in pairs)
    size = sum(float((old.detach() ** 2).sum()) for _, old in pairs)
    assert found["all"][0] == pytest.approx(np.sqrt(far / size))
    assert found["all"][1] == len(pairs)
    assert found["linear"][0] > found["all"][0] > 0


def test_lora_moves_by_the_scaled_product_of_its_factors():
    base = toys.llama()
    model = adapted(base, target_modules=["q_proj"], layers_to_transform=[0])
    factors = {n: p.detach() for n, p in model.named_parameters() if "lora_" in n}
    (down,) = (p for n, p in factors.items() if "lora_A" in n)
    (up,) = (p for n, p in factors.items() if "lora_B" in n)
    size = sum(float((p.detach() ** 2).sum()) for p in base.parameters())
    expected = float((3.0 * up @ down).norm()) / np.sqrt(size)
    assert measures.weight_distance(model, base)["all"][0] == pytest.approx(expected)


def test_a_distance_from_a_16_bit_base_is_not_rounded():
    """A change of a thousandth of the weights is below their spacing of a 256th."""
    base = toys.llama().to(torch.bfloat16)
    model = adapted(copy.deepcopy(base))
    squares = []
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
                B.normal_(generator=torch.Generator().manual_seed(len(name)))
                W = module.get_base_layer().weight.double()
                delta = module.scaling["default"] * (B.double() @ A.double())
                B *= float(1e-3 * W.norm() / delta.norm())
                delta = module.scaling["default"] * (B.double() @ A.double())
                squares.append(float(delta.square().sum()))
    whole = sum(float(p.detach().double().square().sum()) for p in base.parameters())
    found = measures.weight_distance(model, base)["all"][0]
    assert found == pytest.approx((sum(squares) / whole) ** 0.5, rel=1e-4)


def test_the_base_is_no_distance_from_itself():
    assert measures.weight_distance(toys.llama(), toys.llama())["all"][0] == 0


# -- training loss ------------------------------------------------------------------------------


def test_relative_deviation_by_hand():
    assert measures.relative_deviation([1.0, 3.0]) == pytest.approx(np.sqrt(2) / 2)
    assert measures.relative_deviation([2.0] * 5) == 0
    assert measures.relative_deviation([2.0]) is None


def test_the_default_window_is_the_second_half(subject):
    losses = [9.0, 8.0, 7.0, 1.0, 3.0, 2.0]
    found = run(["train_loss_rsd"], subject(losses=losses))
    expected = {"second_half": [1.0, 3.0, 2.0], "all_steps": losses}
    for one in found:
        values = expected.pop(one.metric)
        assert one.value == pytest.approx(np.std(values, ddof=1) / np.mean(values))
        assert (one.n, one.task_type) == (len(values), "measure")
    assert not expected


# -- generation ---------------------------------------------------------------------------------

PROMPTS = ["The quick", "The lazy dog", "Name the capital", "times; isn't"]
ANSWERS = ["brown fox jumps over the lazy dog, 12", "Paris is the", "of France. Response", "x"]


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Prompt and answer as tokenised rows, the answer with its stop token."""
    made = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        asked = tokenizer(prompt)["input_ids"]
        said = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        roles = [Role.INSTRUCTION] * len(asked) + [Role.COMPLETION] * len(said)
        made.append((asked + said, roles))
    return made


@pytest.fixture(scope="module")
def by_heart(rows):
    """A model that was trained on the rows until it knows them."""
    model = toys.llama(torch.float32, vocab_size=512, hidden_size=32, initializer_range=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        ids = torch.tensor([rows[step % len(rows)][0]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture
def subject(by_heart, tokenizer, rows):
    def make(**changes):
        settings = {
            "model": by_heart,
            "base": lambda: by_heart,
            "tokenizer": tokenizer,
            "train": toys.tokenised(rows),
            "heldout": lambda: toys.tokenised(rows),
            "losses": [],
        }
        return measures.Subject(**settings | changes)

    return make


def run(names, subject, **settings):
    evaluate = Evaluate(name="toy", **settings)
    return measures.measure(names, subject, evaluate=evaluate, execution=Execution())


def test_what_is_known_by_heart_scores_100(subject):
    (found,) = run(["prompt_bleu"], subject())
    assert found.value == pytest.approx(100)
    assert found.n == len(found.items) == 4
    assert found.items[0] == (0, pytest.approx(100))
    assert found.higher_is_better is None


def test_another_model_knows_less(subject):
    stranger = toys.llama(torch.float32, vocab_size=512, hidden_size=32)
    (found,) = run(["prompt_bleu"], subject(model=stranger))
    assert found.value < 30


def test_generation_length_counts_tokens_before_the_stop(subject, rows):
    tokens, capped = run(["generation_length"], subject())
    lengths = [roles.count(Role.COMPLETION) - 1 for _, roles in rows]
    assert [length for _, length in tokens.items] == lengths
    assert (tokens.value, tokens.metric) == (np.mean(lengths), "tokens")
    assert (capped.value, capped.metric) == (0, "capped")


def test_an_answer_ends_at_the_chat_templates_stop_in_tokens_or_in_words(subject, rows, tokenizer):
    """A token of what the model knows by heart, then a text inside it, is taken for the stop."""
    known = [ids[roles.index(Role.COMPLETION) : -1] for ids, roles in rows]
    (token,) = {ids[1] for ids in known[:1]}
    lengths = [ids.index(token) if token in ids else len(ids) for ids in known]
    stop = Stop("?", (token,), ("?",))
    tokens, _ = run(["generation_length"], subject(stop=stop))
    assert [length for _, length in tokens.items] == lengths
    tokens, _ = run(["generation_length"], subject(stop=Stop(" the", (), ("the",))))
    texts = [tokenizer.decode(ids).partition("the")[0] for ids in known]
    for (_, length), ids, text in zip(tokens.items, known, texts, strict=True):
        assert len(tokenizer.decode(ids[: int(length)])) <= len(text)
        assert length == len(ids) or len(tokenizer.decode(ids[: int(length) + 1])) > len(text)
    assert tokens.value < np.mean([len(ids) for ids in known])


def test_generation_ends_at_its_limit_and_says_so(subject, rows):
    limit = 3
    tokens, capped = run(["generation_length"], subject(), max_new_tokens=limit)
    lengths = [min(limit, roles.count(Role.COMPLETION) - 1) for _, roles in rows]
    assert [length for _, length in tokens.items] == lengths
    assert capped.value == np.mean([length == limit for length in lengths])
    assert 0 < capped.value < 1


def test_rows_are_evenly_spaced(subject, rows):
    many = toys.tokenised(rows * 25)
    assert measures.answered_rows(many, 4) == [0, 33, 66, 99]
    assert measures.answered_rows(many, 1000) == list(range(100))
    (found,) = run(["prompt_bleu"], subject(train=many), measure_rows=3)
    assert [row for row, _ in found.items] == [0, 49, 99]


def test_only_the_length_of_generations_reads_the_test_part(subject):
    def nothing():
        raise LookupError("no test part")

    names = ["weight_distance", "train_loss_rsd", "prompt_bleu", "memorised"]
    assert run(names, subject(heldout=nothing, losses=[1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(LookupError):
        run(["generation_length"], subject(heldout=nothing))


def test_plain_text_has_no_answers_to_measure(subject, rows):
    text = toys.tokenised([(ids, [Role.TEXT] * len(ids)) for ids, _ in rows])
    assert (
        run(["prompt_bleu", "generation_length"], subject(train=text, heldout=lambda: text)) == []
    )


# -- the table ----------------------------------------------------------------------------------


def test_every_known_measure_can_be_taken(subject):
    assert set(measures.MEASURES) == set(MEASURES)
    moved = copy.deepcopy(subject().model)  # an unchanged weight has no spectrum
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.25)
    given = subject(losses=[1.0, 2.0, 3.0, 2.0], base=lambda: moved)
    found = run(list(MEASURES), given)
    assert {one.asked for one in found} == set(MEASURES)


def test_an_unknown_measure_is_one_line(subject):
    with pytest.raises(UserError, match="weight_distance"):
        run(["weight_distanc"], subject())


# -- spectrum of the change ---------------------------------------------------------------------


def test_the_rank_of_a_change_is_that_of_numpys_decomposition():
    base = toys.llama()
    moved = copy.deepcopy(base)
    draws = np.random.default_rng(0)
    expected = {}
    for name, parameter in moved.named_parameters():
        if "layers.1." in name and parameter.ndim == 2:
            change = draws.normal(size=parameter.shape)
            with torch.no_grad():
                parameter.add_(torch.from_numpy(change))
            energy = np.linalg.svd(change, compute_uv=False) ** 2
            needed = np.searchsorted(np.cumsum(energy) / energy.sum(), 0.9) + 1
            numbers = needed / len(energy), energy.sum() / energy[0] / len(energy)
            expected[name.split(".")[-2]] = numbers
    found = spectrum.spectrum(measures.changes(moved, base))
    assert "rank90_layer_0" not in found  # it did not change
    for kind, (rank90, stable) in expected.items():
        assert found[f"rank90_{kind}"] == (pytest.approx(rank90), 1)
        assert found[f"stable_{kind}"] == (pytest.approx(stable), 1)
    mean = np.mean([one for one, _ in expected.values()])
    assert found["rank90_layer_1"] == (pytest.approx(mean), 7)


def test_the_change_of_an_adapter_has_its_rank():
    base = toys.llama()
    found = spectrum.spectrum(measures.changes(adapted(base, r=1), base))
    assert set(found) >= {"rank90_q_proj", "stable_down_proj"}
    for name, (value, _) in found.items():
        if "q_proj" in name:
            assert value == pytest.approx(1 / 16)
    assert spectrum.ranks(torch.ones(10)) == (pytest.approx(0.9), pytest.approx(1.0))
