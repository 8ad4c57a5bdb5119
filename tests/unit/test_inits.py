"""Starts of LoRA's factors, against decompositions made here."""

import numpy as np
import pytest
import torch
from torch import nn

from ablate.adapters import build, compatibility, weights
from ablate.adapters.init import kept
from ablate.adapters.init import levels as inits
from ablate.adapters.lora.starts import layers
from ablate.config import schema
from ablate.errors import UserError
from ablate.roles import Role
from ablate.streams import Streams
from tests import levels, toys
from tests.levels import RANK, base, cell, logits, pristine
from tests.pairs import base_weights, close, factors, held, inputs, mean_gradient, same_span

BASE_CHANGING = ("pissa", "pissa_niter", "olora", "corda", "lora_ga", "milora")


def init(level: str, **options) -> schema.Init:
    tree = levels.read("init", level)
    return schema.Init(**tree | {"options": tree["options"] | options})


def begun(level: str, architecture: str = "llama", rank: int = RANK, **options) -> nn.Module:
    asked = cell("lora", rank=rank, init=init(level, **options))
    return levels.applied(asked, architecture)


# --- without data


def test_loftq_divides_the_quantisation_error_by_the_scale(monkeypatch):
    """PEFT's function, stood in for here since it needs a GPU, sets B A to the error itself."""
    errors = {}

    def replace(module, model_path):
        for name, layer in layers(module):
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            nn.init.normal_(A)
            nn.init.normal_(B)
            errors[name] = (B @ A).detach().clone()

    monkeypatch.setattr("peft.replace_lora_weights_loftq", replace)
    module = levels.applied(cell("lora"))
    inits.LOFTQ.after(module, None)
    for name, layer in layers(module):
        assert layer.scaling["default"] == 2
        close(layer.get_delta_weight("default"), errors[name])


def test_gaussian_follows_pefts_law_row_by_row():
    small, large = factors(begun("gaussian")), factors(begun("gaussian", rank=16))
    for name, (A, B) in small.items():
        close(A * 4, large[name][0][:4] * 16)  # N(0, 1/r^2): the same normal draws
        assert not B.any()
    drawn = torch.cat([A.flatten() for A, _ in large.values()]) * 16
    assert drawn.mean().abs() < 0.05
    assert drawn.std().item() == pytest.approx(1, rel=0.03)
    assert len({float(A[0, 0]) for A, _ in large.values()}) == len(large)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_orthogonal_factors_cancel(architecture):
    for A, B in factors(begun("orthogonal", architecture)).values():
        assert A.norm() > 0.2
        assert B.norm() > 0.2
        close(B @ A, torch.zeros(1).expand(len(B), A.shape[1]))


def test_orthogonal_draws_depend_on_seed_and_module_alone():
    one = factors(begun("orthogonal"))
    some = cell(
        "lora",
        init=init("orthogonal"),
        placement=schema.Placement(name="v", modules=("v_proj",)),
    )
    for name, (A, B) in factors(levels.applied(some)).items():
        assert torch.equal(A, one[name][0])
        assert torch.equal(B, one[name][1])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_pissa_takes_the_largest_singular_triples(architecture):
    module = begun("pissa", architecture)
    left, weights = held(module), base_weights(architecture)
    for name, (A, B) in factors(module).items():
        U, S, Vh = np.linalg.svd(weights[name].numpy(), full_matrices=False)
        best = torch.from_numpy((U[:, :RANK] * S[:RANK]) @ Vh[:RANK])
        close(2 * B @ A, best)
        close(left[name] + 2 * B @ A, weights[name])
        close(A @ A.T, torch.diag(torch.from_numpy(S[:RANK])) / 2, atol=1e-5)  # sqrt(S / scale)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_milora_takes_the_smallest_singular_triples(architecture):
    module = begun("milora", architecture)
    left, weights = held(module), base_weights(architecture)
    for name, (A, B) in factors(module).items():
        U, S, Vh = np.linalg.svd(weights[name].numpy(), full_matrices=False)
        least = torch.from_numpy((U[:, -RANK:] * S[-RANK:]) @ Vh[-RANK:])
        close(2 * B @ A, least)
        close(left[name] + 2 * B @ A, weights[name])
        close(A @ A.T, torch.diag(torch.from_numpy(S[-RANK:])) / 2, atol=1e-5)  # sqrt(S / scale)
        rest = torch.from_numpy((U[:, :-RANK] * S[:-RANK]) @ Vh[:-RANK])
        close(left[name], rest)  # what the frozen weight keeps: the largest triples


@pytest.mark.parametrize("subtract", [False, True])
def test_both_factors_drawn(subtract):
    """A as in LoRA, B from the same law in its own width; the product is in the model, or out."""
    module, lora = begun("both_random", subtract=subtract), factors(levels.applied(cell("lora")))
    left, weights = held(module), base_weights()
    for name, (A, B) in factors(module).items():
        assert torch.equal(A, lora[name][0])
        bound = len(B) ** -0.5
        assert 0.8 * bound < B.abs().max() < bound
        close(left[name] + (2 * B @ A if subtract else 0), weights[name])
    drawn = torch.cat([(B * len(B) ** 0.5).flatten() for _, B in factors(module).values()])
    assert drawn.std().item() == pytest.approx(3**-0.5, rel=0.05)
    off = (logits(module) - logits(pristine("llama"))).abs().max()
    assert (off < 1e-5) if subtract else (off > 0.05)


def test_both_factors_zero_have_no_gradient_and_train_nothing():
    """dL/dA = s B' G and dL/dB = s G A' are zero at A = B = 0, whatever G is."""
    asked = cell("lora", init=init("both_zero"))
    module = levels.applied(asked)
    losses = levels.fit(module, asked)
    assert max(losses) - min(losses) < 1e-6  # rows are in another order at each step
    assert not any(p.any() for p in build.trained(module).values())
    assert torch.equal(logits(module), logits(pristine("llama")))


@pytest.mark.parametrize("start", ["both_random", "both_zero"])
def test_a_start_that_magnitudes_would_undo_is_refused(start):
    asked = cell("dora", init=init(start))
    with pytest.raises(UserError, match=f"^init={start}: adapter=dora has magnitudes"):
        compatibility.check(asked, architecture="LlamaForCausalLM")


def test_quick_pissa_is_near_the_exact_one():
    """What is captured of the largest that can be; more iterations capture more."""
    best = factors(begun("pissa"))

    def captured(iterations: int) -> float:
        found = factors(begun("pissa_niter", iterations=iterations))
        shares = [(B @ A).norm() / (best[n][1] @ best[n][0]).norm() for n, (A, B) in found.items()]
        assert max(shares) < 1 + 1e-6
        return float(min(shares))

    assert 0.8 < captured(1) < captured(4) < captured(30)
    assert captured(30) > 0.99


def test_olora_starts_from_q_and_r():
    module = begun("olora")
    for name, (A, B) in factors(module).items():
        Q, R = np.linalg.qr(base_weights()[name].numpy())
        close(B @ A, torch.from_numpy(Q[:, :RANK] @ R[:RANK]))
        close(B.T @ B, torch.eye(RANK))


# --- with data


def test_eva_starts_at_the_inputs_principal_directions():
    module = begun("eva")
    seen = inputs()
    for name, (A, B) in factors(module).items():
        rows = np.concatenate([x[1:] for x in seen[name]])  # the first token carries no weight
        centred = rows - rows.mean(0)
        _, S, Vh = np.linalg.svd(centred, full_matrices=False)
        assert S[RANK - 1] > S[RANK]
        same_span(A, torch.from_numpy(Vh[:RANK].copy()), least=0.98)  # PEFT goes batch by batch
        close(A @ A.T, torch.eye(RANK), atol=1e-5)
        assert not B.any()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_corda_takes_the_largest_triples_of_weight_times_covariance(architecture):
    module = begun("corda", architecture)
    left, weights, seen = held(module), base_weights(architecture), inputs(architecture)
    for name, (A, B) in factors(module).items():
        scaled = [x / np.abs(x.max()) for x in seen[name]]
        covariance = sum(x.T @ x for x in scaled) / len(scaled)
        covariance += 0.01 * np.diag(covariance).mean() * np.eye(len(covariance))
        U, S, Vh = np.linalg.svd(weights[name].numpy() @ covariance, full_matrices=False)
        best = (U[:, :RANK] * S[:RANK]) @ Vh[:RANK] @ np.linalg.inv(covariance)
        close(2 * B @ A, torch.from_numpy(best), atol=1e-3)  # an inverse in float32
        close(left[name] + 2 * B @ A, weights[name])


def test_lora_ga_starts_at_the_gradients_singular_vectors():
    module = begun("lora_ga", scale="unit")
    left, gradients = held(module), mean_gradient()
    for name, (A, B) in factors(module).items():
        U, S, Vh = torch.linalg.svd(gradients[name], full_matrices=False)
        same_span(A, Vh[:RANK])
        same_span(B.T, U[:, RANK : 2 * RANK].T)
        close(A @ A.T, torch.eye(RANK), atol=1e-5)
        torch.testing.assert_close(B.norm(dim=0), S[RANK : 2 * RANK], rtol=1e-3, atol=0)
        close(left[name] + 2 * B @ A, base_weights()[name])


@pytest.mark.parametrize("level", ["eva", "corda", "lora_ga"])
def test_a_start_from_data_needs_them(level):
    asked = cell("lora", init=init(level))
    with pytest.raises(UserError, match=f"init={level}: starts from the data"):
        build.apply(base("llama"), asked, streams=Streams(0))


def test_eva_says_what_it_cannot_do(monkeypatch):
    asked = cell("lora", init=init("eva"), train=toys.train_settings(batch_size=1))
    tiny = toys.tokenised([([1, 2, 3, 4], [Role.INSTRUCTION] * 3 + [Role.COMPLETION])])
    with pytest.raises(UserError, match="needs 8 tokens with a loss weight in each batch"):
        build.apply(base("llama"), asked, streams=Streams(0), data=tiny)
    monkeypatch.setattr(inits, "EVA_PASSES", 1)
    with pytest.raises(UserError, match="do not converge in 1 passes"):
        begun("eva", batches=1)


# --- what is taken out of the base


@pytest.mark.parametrize("level", BASE_CHANGING)
def test_disabling_gives_the_base_although_its_weights_are_changed(level):
    module, plain = begun(level), logits(pristine("llama"))
    close(logits(module), plain)
    moved = max(float((w - base_weights()[name]).abs().max()) for name, w in held(module).items())
    assert moved > 1e-4
    with torch.no_grad():
        for parameter in build.trained(module).values():
            parameter.mul_(1.5)
    assert (logits(module) - plain).abs().max() > 1e-3
    with module.disable_adapter():
        close(logits(module), plain)


@pytest.mark.parametrize("name", ["kasa", *(f"init={level}" for level in BASE_CHANGING)])
def test_a_changed_base_is_loaded_as_it_was_saved(name, tmp_path):
    run, asked = levels.run(name, "llama"), levels.SUBJECTS[name]
    weights.save(run.module, tmp_path)
    loaded = weights.load(base("llama"), tmp_path, asked, streams=Streams(7))  # draws nothing
    close(logits(loaded), run.tuned, atol=toys.ROUNDING * float(run.tuned.abs().max()))
    with loaded.disable_adapter():
        close(logits(loaded), run.base)


# --- kept between cells


def refused(*args, **settings):
    raise AssertionError("decomposed again")


@pytest.mark.parametrize(
    ("level", "start", "architecture"),
    [("lora", "pissa", "llama"), ("lora", "pissa", "gpt2"), ("dora", "pissa", "llama"),
     ("lora", "olora", "llama"), ("lora", "milora", "gpt2")],
)  # fmt: skip
def test_a_kept_start_is_the_one_that_was_computed(
    level, start, architecture, monkeypatch, tmp_path
):
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "LEAST", 1)

    def apply(rank: int = RANK, content_hash: str = "base") -> nn.Module:
        asked = cell(level, init=init(start), rank=rank)
        return build.apply(base(architecture), asked, streams=Streams(0), content_hash=content_hash)

    computed = apply()
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "svd", refused)
        patch.setattr(torch.linalg, "qr", refused)
        found = apply()
        for others in ({"rank": RANK + 1}, {"content_hash": "another"}):
            with pytest.raises(AssertionError, match="decomposed again"):
                apply(**others)
    for one, other in ((computed.state_dict(), found.state_dict()),
                       (dict(computed.named_buffers()), dict(found.named_buffers()))):  # fmt: skip
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert build.trained(found).keys() == build.trained(computed).keys()
    asked = cell(level, init=init(start))
    assert levels.fit(found, asked) == levels.fit(computed, asked)
    assert weights.tensors(found).keys() == weights.tensors(computed).keys()


def test_small_bases_and_starts_from_data_or_draws_are_not_kept(monkeypatch):
    shapes = {"layers.0.q_proj": (1024, 1024)}
    where = {"content_hash": "base", "device": torch.device("cpu")}

    def file(start: str, **options):
        return kept.start_file(cell("lora", init=init(start, **options)), shapes, **where)

    assert file("pissa") not in (None, file("olora"), file("milora"))
    assert file("pissa", iterations=4) is None
    assert file("corda") is None
    assert file("default") is None
    monkeypatch.setattr(kept, "LEAST", 1024**2 + 1)
    assert file("pissa") is None
