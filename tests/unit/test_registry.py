"""The adapter table without torch: capacities, budgets, placements and what is refused."""

import itertools
import math
import subprocess
import sys

import pytest

from ablate.adapters import compatibility, registry
from ablate.adapters.method import CandidateSize, Size, closest, divisors, each, lora_count
from ablate.config import schema
from ablate.errors import UserError
from tests import catalogue, levels
from tests.levels import LEVELS, adapter

SQUARE = {f"layers.{i}.self_attn.{n}_proj": (64, 64) for i in range(2) for n in "qkvo"}
SHAPES = SQUARE | {"layers.0.mlp.up_proj": (170, 64), "layers.0.mlp.down_proj": (64, 170)}
LLAMA_1B, NORMS_1B = catalogue.MODELS["Llama-3.2-1B"]
LLAMA_7B, NORMS_7B = catalogue.MODELS["Llama-2-7B"]


def cell(level, rank: int = 4, **changes) -> schema.Cell:
    placed = {key: changes.pop(key) for key in ("modules", "layers") if key in changes}
    placement = schema.Placement(name="p", **placed) if placed else schema.Placement()
    return levels.cell(level, rank=rank, placement=placement, **changes)


def same(one: tuple, other: tuple, shapes=SHAPES) -> bool:
    return registry.capacity(cell(*one), shapes) == registry.capacity(cell(*other), shapes)


def test_capacities_that_are_one_run_are_equal_and_others_are_not():
    assert same(("full", 1), ("full", 64))
    assert same(("none", 1), ("none", 64))
    assert not same(("full", 1), ("none", 1))
    assert not same(("lora", 4), ("lora", 8))
    assert same(("lora", 16), ("rslora", 16))  # one scale, 2
    assert not same(("lora", 8), ("rslora", 8))
    assert same(("lora", 4), (adapter("lora", options={"alpha": 8}), 4))
    assert not same(("lora", 4), ("dora", 4))
    assert not same(("lora", 4), (adapter("lora", options={"dropout": 0.05}), 4))
    assert same(("mora", 61), ("mora", 62), SQUARE)  # sides 88 and 89, both cut to 64
    assert not same(("mora", 4), ("mora", 5), SQUARE)
    assert not same(("mora_rotation", 4), ("mora", 4))
    assert same(("mora", 4), (adapter("mora", options={"type": "auto"}), 4))
    assert not same(("psoft", 4), ("lora_xs", 4))


@pytest.mark.parametrize("level", ["vera", "tinylora", "road", "ia3", "beft", "layernorm"])
def test_a_level_without_a_capacity_is_one_run_at_every_rank(level):
    assert same((level, 1), (level, 64))


def test_ranks_that_round_to_one_side_are_one_run():
    tiny = {"proj": (2, 2)}
    assert same(("mora_rotation", 1), ("mora_rotation", 2), tiny)  # sides 2 and 2
    assert same(("loha", 4), ("loha", 5))  # two products of rank 2


def test_placements_that_select_the_same_matrices_are_one_run():
    def capacity(**placement):
        return registry.capacity(cell("lora", **placement), SHAPES)

    every = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    assert capacity() == capacity(modules=every) == capacity(layers=(0, 1))
    assert capacity(modules="mlp") == capacity(modules=("up_proj", "mlp.down_proj"))
    assert capacity(modules="mlp") == capacity(modules="mlp", layers=(-2,))
    assert capacity(layers=(1,)) == capacity(layers=(-1,)) != capacity(layers=(0,))


# --- capacity from a budget


@pytest.mark.parametrize("step", [1, 2, 5])
def test_the_nearest_capacity_is_the_one_that_a_search_finds(step):
    size = Size(
        setting="n",
        count=each(lambda n, d, k: n * n + 3 * d),
        largest=lambda shapes, options: 60,
        step=lambda shapes, options: step,
    )
    for rank in range(1, 64):
        asked = lora_count(rank, SHAPES)
        errors = {n: abs(size.count(n, SHAPES, {}) - asked) for n in range(step, 61, step)}
        assert size.at(rank, SHAPES, {}) == min(errors, key=lambda n: (errors[n], n))


def test_closest_takes_the_lower_at_a_tie_and_stays_in_range():
    assert closest(lambda n: 10 * n, 25, 9) == 2
    assert closest(lambda n: 10 * n, 26, 9) == 3
    assert closest(lambda n: 10 * n, 1, 9) == 1
    assert closest(lambda n: 10 * n, 1000, 9) == 9


def test_a_choice_is_the_nearest_candidate_and_the_first_of_equals():
    sizes = [{"b": 3, "t": 0}, {"b": 5, "t": 0}, {"b": 5, "t": 1}]
    choice = CandidateSize(
        setting="b",
        candidates=lambda rank, shapes, options: sizes,
        count=lambda settings, shapes, options: 100 * settings["b"],
    )
    assert choice.chosen(1, {"proj": (200, 200)}, {}) == sizes[0]  # 400 is as near to both
    assert choice.chosen(1, {"proj": (200, 202)}, {}) == sizes[1]
    assert choice.parameters(1, {"proj": (200, 202)}, {}) == 500


@pytest.mark.parametrize("number", [1, 2, 12, 36, 97, 11008])
def test_divisors(number):
    assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]


def test_budget_of_a_small_model():
    d_plus_k = 8 * 128 + 2 * 234
    lora = registry.budget(cell("lora"), SHAPES)
    assert (lora.asked, lora.got, lora.status) == (4 * d_plus_k, 4 * d_plus_k, "matched")
    dora = registry.budget(cell("dora"), SHAPES)
    assert dora.got - dora.asked == 8 * 64 + 170 + 64
    mora = registry.budget(cell("mora"), SHAPES)
    assert (mora.asked, mora.got) == (4 * d_plus_k, 8 * 22**2 + 2 * 30**2)
    assert mora.ratio == 5672 / 5968
    assert registry.budget(cell("full"), SHAPES) is None


def test_budget_is_of_what_is_placed():
    """IA3 leaves out what it does not scale; LoRA's budget at that placement stays the measure."""
    found = registry.budget(cell("ia3", modules="mlp"), SHAPES)
    assert (found.asked, found.got, found.status) == (4 * 2 * 234, 170, "unmatched")


# Counts by hand, from what each paper trains, and those that PEFT prints for these models.
KNOWN = [
    ("lora", 8, LLAMA_7B, 19_988_480),  # 8 (4 x 8192 + 3 x 15104) in 32 layers
    ("lora", 8, LLAMA_1B, 5_636_096),
    ("ia3", 8, LLAMA_7B, 614_400),  # 4096 + 4096 + 11008 in 32 layers
    ("layernorm", 8, LLAMA_7B, 266_240),  # 65 norms of 4096
    ("beft", 8, LLAMA_7B, 32 * (5 * 4096 + 2 * 11008)),
    ("vera", 8, LLAMA_7B, 32 * (7 * 256 + 5 * 4096 + 2 * 11008)),
    ("tinylora", 8, LLAMA_7B, 224 * 64),
    ("road", 8, LLAMA_7B, 32 * (5 * 4096 + 2 * 11008)),
    ("unilora", 8, LLAMA_7B, 19_988_480),
    ("prompt", 8, LLAMA_7B, 64 * 4096),
    ("prefix", 4, LLAMA_7B, 38 * 32 * 2 * 4096),
    ("prefix", 8, LLAMA_1B, 64 * 16 * 2 * 512),  # grouped-query: the width of the keys
    ("fourierft", 8, LLAMA_7B, 224 * 89_234),  # 19,988,480 / 224 = 89,234.29
    ("lora_xs", 8, LLAMA_7B, 224 * 299**2),  # sqrt 89,234 = 298.7
    ("psoft", 8, LLAMA_7B, 224 * (421 * 420 // 2 + 2 * 421)),
    ("oft", 8, LLAMA_7B, 32 * (6 * 4096 * 31 + 11008 * 42) // 2),  # blocks of 32, and 43 of 11008
    ("boft", 8, LLAMA_7B, 32 * (2 * 8 * (6 * 4096 + 11008) + 5 * 4096 + 2 * 11008)),
    ("hra", 8, LLAMA_7B, 32 * 18 * (6 * 4096 + 11008)),
    ("miss", 8, LLAMA_7B, 32 * 15 * (5 * 4096 + 2 * 11008)),
    ("randlora", 8, LLAMA_7B, 224 * 21 * (196 + 4096)),  # 21 terms is nearest, 196 its least rank
    ("vblora", 8, LLAMA_7B, 509 * (256 + 4 * 32 * (4 * 32 + 3 * 59))),  # vectors of 256
]


@pytest.mark.parametrize(("level", "rank", "shapes", "count"), KNOWN)
def test_counts_at_the_papers_sizes(level, rank, shapes, count):
    norms = NORMS_7B if shapes is LLAMA_7B else NORMS_1B
    assert registry.budget(cell(level, rank), shapes, norms=norms).got == count


# Where a matched level stays more than a tenth away, and why: the sides have no common divisor
# left, or no more than the whole space is there to train.
COARSE = {
    ("c3a", 4, 7): "circulant blocks of 512 do not divide 11008",
    ("boft", 256, 7): "two factors of blocks above 128 do not divide 11008",
    ("oft", 4, 7): "blocks between 16 and 22 divide neither 4096 nor 11008",
    ("oft", 4, 1): "blocks between 16 and 32 do not divide a power of two",
    ("psoft", 0, 1): "rotations of the 512 keys' space",
    ("lora_xs", 0, 1): "the 512 keys' space",
    ("dora", 4, 0): "magnitudes weigh more at a small rank",
}


@pytest.mark.parametrize("level", [n for n in LEVELS if n not in ("none", "full")])
@pytest.mark.parametrize("billions", [1, 7])
def test_a_level_that_says_so_matches_the_budget_at_usual_ranks(level, billions):
    shapes, norms = catalogue.MODELS["Llama-3.2-1B" if billions == 1 else "Llama-2-7B"]
    found = {
        rank: registry.budget(cell(level, rank), shapes, norms=norms) for rank in catalogue.RANKS
    }
    near = {rank for rank, budget in found.items() if 0.9 <= budget.ratio <= 1.1}
    if not registry.method(adapter(level)).matched:
        assert {budget.status for budget in found.values()} == {"unmatched"}
        return
    assert {rank for rank, budget in found.items() if budget.status == "matched"} == near
    coarse = {rank for rank in found for size in (billions, 0) if (level, rank, size) in COARSE}
    always = any((level, 0, size) in COARSE for size in (billions, 0))
    assert near if always else near == set(found) - coarse


@pytest.mark.parametrize("level", LEVELS)
def test_counts_never_fall_in_the_rank(level):
    counts = [registry.budget(cell(level, r), LLAMA_1B, norms=NORMS_1B) for r in range(1, 65)]
    got = [0 if count is None else count.got for count in counts]
    slack = 1.02 if level in ("lokr", "randlora", "c3a", "oft") else 1.0  # divisors jump
    assert all(low <= slack * high for low, high in itertools.pairwise(got))


# --- what is refused


BAD = {
    "kind": (cell(adapter("lora", kind="loraa")), "adapter.kind=loraa.*Did you mean 'lora'"),
    "option": (
        cell(adapter("lora", options={"droput": 0.1})),
        "adapter.options.droput.*Did you mean 'dropout'",
    ),
    "option of another kind": (
        cell(adapter("full", options={"alpha": 1.0})),
        "options.alpha: full has no such option, only none",
    ),
    "dropout of one": (cell(adapter("lora", options={"dropout": 1.0})), "dropout=1.0: must be"),
    "dropout in words": (cell(adapter("mora", options={"dropout": "some"})), "=some: must"),
    "alpha of zero": (cell(adapter("lora", options={"alpha": 0})), "alpha=0: must be positive"),
    "alpha that is a flag": (
        cell(adapter("lora", options={"alpha_over_rank": True})),
        "=True: must",
    ),
    "flag that is a number": (cell(adapter("lora", options={"dora": 1})), "dora=1: must be true"),
    "type": (cell(adapter("mora", options={"type": "rotary"})), "type=rotary: must be one of"),
    "module": (cell("lora", modules=("q_porj",)), "modules=q_porj.*Did you mean 'q_proj'"),
    "one module of two": (cell("mora", modules=("q_proj", "gate")), "placement.modules=gate"),
    "part of a name": (cell("lora", modules=("proj",)), "placement.modules=proj"),
    "no module": (cell("lora", modules=()), "must name a module"),
    "layer": (cell("lora", layers=(2,)), "layers: 2 is not one of this model's 2 layers"),
    "negative layer": (cell("lora", layers=(-3,)), "layers: -3 is not one of"),
    "nothing left": (cell("lora", modules="mlp", layers=(1,)), "placement=p: selects no matrix"),
    "placement of full": (cell("full", modules="mlp"), "placement=p: adapter=full"),
    "placement of prompts": (cell("prompt", modules="mlp"), "placement=p: adapter=prompt"),
    "placement of norms": (cell("layernorm", layers=(0,)), "placement=p: adapter=layernorm"),
    "nothing for ia3": (cell("ia3", modules=("q_proj",)), "has none of the matrices that"),
    "rank": (cell("lora", 65), r"rank=65: must be at most 64, .* layers.0.self_attn.q_proj \(64"),
    "rank of mora": (cell("mora", 65), "rank=65: must be at most 64"),
    "blocks": (cell(adapter("gralora", options={"blocks": 4})), "blocks=4: must divide the sides"),
    "factors": (cell(adapter("boft", options={"factors": 4})), "factors=4: needs inputs"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_requests_are_one_line(case):
    asked, said = case
    with pytest.raises(UserError, match=said) as raised:
        registry.check(asked, SHAPES)
    assert "\n" not in str(raised.value)


ODD = {"layers.0.self_attn.k_proj": (63, 64), "layers.0.mlp.up_proj": (65, 64)}


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("lokr", "kind=lokr: the sides"),
        ("road", "kind=road: an adapted matrix has an odd"),
        ("gralora", "blocks=2: must divide"),
    ],
)
def test_shapes_that_a_method_cannot_take_are_refused(level, said):
    with pytest.raises(UserError, match=said):
        registry.check(cell(level), ODD)


def test_prompts_need_a_model_whose_attention_is_known():
    with pytest.raises(UserError, match="finds no matrix that computes this model's keys"):
        registry.check(cell("prefix"), {"layers.0.mixer": (64, 64)})


def test_virtual_tokens_take_positions():
    found = {n: registry.virtual_tokens(cell(n, 8), LLAMA_7B) for n in LEVELS}
    assert {n: v for n, v in found.items() if v} == {"prefix": 64, "prompt": 64, "p_tuning": 20}


def test_rank_limit_is_of_the_adapted_matrices_only():
    shapes = SHAPES | {"layers.0.small": (8, 64)}
    registry.check(cell("lora", 64, modules=("q_proj",)), shapes)
    registry.check(cell("full", 1000), shapes)
    with pytest.raises(UserError, match="at most 8"):
        registry.check(cell("lora", 9), shapes)


@pytest.mark.parametrize("level", ["prefix", "prompt", "p_tuning"])
def test_prompts_are_refused_with_packing(level):
    asked = cell(level, execution=schema.Execution(layout="packed"))
    with pytest.raises(UserError, match=r"execution.layout=packed: with adapter=.* see each other"):
        compatibility.check(asked, architecture="LlamaForCausalLM")
    compatibility.check(cell(level), architecture="LlamaForCausalLM")


@pytest.mark.parametrize("level", [n for n in LEVELS if not registry.method(adapter(n)).conv1d])
def test_what_cannot_adapt_transposed_layers_is_refused_on_gpt2(level):
    with pytest.raises(UserError, match=f"adapter={level}: does not support GPT-2"):
        compatibility.check(cell(level), architecture="GPT2LMHeadModel")


# Six steps on bitsandbytes layers: these raise, or PEFT lets them train nothing (Uni-LoRA) or start
# away from the base (HRA on int8).
FAILS = {
    "int8": ("delora", "glora", "hra", "psoft", "lora_xs", "tinylora", "unilora", "layernorm"),
    "nf4": ("loha", "lokr", "delora", "glora", "hra", "psoft", "lora_xs", "tinylora", "unilora"),
    "bf16": ("layernorm",),  # its copies of the norms would train in bf16
}


@pytest.mark.parametrize(("precision", "level"), [(p, n) for p in FAILS for n in FAILS[p]])
def test_what_a_base_precision_breaks_is_refused(precision, level):
    with pytest.raises(UserError, match=f"base_precision={precision}: adapter={level} does not"):
        compatibility.check(cell(level, base_precision=precision), architecture="LlamaForCausalLM")


# --- the catalogue


def test_the_catalogue_is_that_of_the_docs():
    path = levels.paths.conf_dir().parent / "docs" / "adapters.md"
    assert path.read_text() == catalogue.page(), "run python -m tests.catalogue"


def test_the_catalogue_names_every_level_and_its_formula():
    page = catalogue.page()
    for level in LEVELS:
        row = registry.method(adapter(level))
        assert (f"| `{level}` |" in page) == (level != "none")
        assert row.formula or not row.adapts, f"{level} has no formula"
        assert row.paper or not row.adapts, f"{level} has no paper"


@pytest.mark.parametrize("shapes", [LLAMA_1B, LLAMA_7B], ids=["1B", "7B"])
def test_the_catalogues_models_have_their_published_size(shapes):
    body = sum(d * k for d, k in shapes.values())
    norms, width = (NORMS_1B, 2048) if shapes is LLAMA_1B else (NORMS_7B, 4096)
    ends = 128_256 * width if shapes is LLAMA_1B else 2 * 32_000 * width  # the 1B ties its head
    published = 1_235_814_400 if shapes is LLAMA_1B else 6_738_415_616
    assert body + norms + ends == published
    assert math.gcd(*(side for shape in shapes.values() for side in shape)) in (512, 256)


def test_table_and_catalogue_need_no_torch():
    code = "import sys; from tests import catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
