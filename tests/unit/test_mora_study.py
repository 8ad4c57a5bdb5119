"""study=mora: its three scales, and its paper scale against what was published."""

from collections import Counter, defaultdict

import pytest

from ablate.config import grid
from ablate.config.compose import expand
from ablate.config.composer import config_loader

SEEDS = {0, 1, 2}
# Table 5: data set -> schedule, warm-up steps, epochs, batch.
FINE_TUNING = {
    "tulu_v2": ("cosine", 500, 2.0, 128), "metamath": ("cosine", 300, 3.0, 128),
}  # fmt: skip
# Table 5: adapter and rank -> alpha, rates. MoRA has no alpha.
ARMS = {
    ("full", None): (None, {2e-5}),
    ("lora", 8): (16, {1e-4, 2e-4}), ("dora", 8): (16, {1e-4, 2e-4}),
    ("relora", 8): (16, {1e-4, 2e-4}),
    ("lora", 256): (128, {1e-4, 2e-4}), ("dora", 256): (128, {1e-4, 2e-4}),
    ("relora", 256): (128, {1e-4, 2e-4}),
    ("mora_rotation", 8): (None, {2e-4, 3e-4}), ("mora", 256): (None, {3e-5, 5e-5}),
}  # fmt: skip


@pytest.fixture(scope="module")
def scales():
    loader = config_loader()
    found = {}
    for scale in ("paper", "micro", "smoke"):
        made = list(grid.cells(expand(["study=mora", f"scale={scale}"], loader=loader)))
        assert [one.error for one in made if one.error] == []
        found[scale] = [one.cell for one in made]
    return found


@pytest.fixture(scope="module")
def paper(scales):
    return scales["paper"]


def arm(cell):
    return cell.adapter.name, None if cell.adapter.name == "full" else cell.rank


def alpha(cell):
    ratio = cell.adapter.options.get("alpha_over_rank")
    return None if ratio is None else ratio * cell.rank


@pytest.mark.parametrize("dataset", FINE_TUNING)
def test_fine_tuning_is_that_of_table_5(paper, dataset):
    schedule, warmup, epochs, batch = FINE_TUNING[dataset]
    cells = [c for c in paper if c.dataset.name == dataset]
    rates = defaultdict(set)
    for cell in cells:
        train = cell.train
        assert cell.model.name == "llama_2_7b"
        assert (train.schedule, train.epochs, train.batch_size) == (schedule, epochs, batch)
        assert (cell.masking.name, train.precision, cell.placement.name) == (
            "instruction",
            "bf16",
            "all",
        )
        assert train.warmup_steps == warmup
        assert cell.embeddings == ("trained" if cell.adapter.name == "full" else "frozen")
        if arm(cell) in ARMS:
            assert alpha(cell) == ARMS[arm(cell)][0]
            rates[arm(cell), cell.optimizer.name].add(train.lr)
        # Its validation loss chooses among the rates of an arm.
        assert "validation" in cell.evaluate.heldout
    plain = {name: own for (name, optimizer), own in rates.items() if optimizer == "adamw"}
    assert plain == {name: given for name, (_, given) in ARMS.items()}


def test_table_1_has_all_its_rows_but_one(paper):
    """LoRA+ at lambda 2 and 4, ReLoRA merged every 1,000 and 2,000 steps; no AsyLoRA."""
    for dataset in FINE_TUNING:
        cells = [c for c in paper if c.dataset.name == dataset]
        for rank in (8, 256):
            own = [c for c in cells if c.rank == rank and c.adapter.name != "full"]
            lambdas = {c.optimizer.options["ratio"] for c in own if c.optimizer.name == "lora_plus"}
            merges = {c.adapter.options["every"] for c in own if c.adapter.name == "relora"}
            assert (lambdas, merges) == ({2.0, 4.0}, {1000, 2000})
        assert {c.seed for c in cells} == SEEDS


def test_mmlu_is_asked_without_and_with_five_shots(paper):
    shots = Counter(c.evaluate.num_fewshot for c in paper if c.dataset.name == "tulu_v2")
    assert set(shots) == {0, 5}
    assert shots[0] == shots[5]
    asked = {c.evaluate.tasks for c in paper if c.dataset.name == "metamath"}
    assert asked == {("gsm8k", "hendrycks_math")}


def test_table_4_has_four_maps_at_two_ranks(paper):
    maps = {"mora_truncate", "mora", "mora_decouple", "mora_rotation"}
    found = {arm(c) for c in paper if c.dataset.name == "metamath" and "mora" in c.adapter.name}
    assert found == {(name, rank) for name in maps for rank in (8, 256)}


def test_memorisation_is_that_of_table_2(paper):
    cells = [c for c in paper if c.dataset.name == "micro_uuid"]
    found = defaultdict(set)
    for cell in cells:
        assert (cell.dataset.options["pairs"], cell.train.batch_size) == (10_000, 1000)
        found[arm(cell)].add((cell.train.max_steps, cell.train.lr))
    steps = (300, 500, 700, 900)
    lora, mora = (1e-4, 2e-4, 3e-4), (5e-5, 1e-4, 2e-4)
    wanted = {("full", None): (3e-5,)} | {("lora", r): lora for r in (8, 16, 32, 64, 128, 256)}
    wanted |= {("mora", r): mora for r in (8, 256)}
    assert found == {k: {(s, lr) for s in steps for lr in rates} for k, rates in wanted.items()}


def test_pretraining_is_that_of_table_3_with_the_full_rank(paper):
    """10,000 steps of 1,024 x 512 tokens, 1,000 of warm-up, cosine, r = 128, 5e-4; merges every
    2,000 steps with 50 of warm-up; type 0 and 1 in turn.
    """
    cells = [c for c in paper if c.dataset.name == "c4"]
    adapters = {"full", "lora", "mora", "relora", "remora", "remora_permute"}
    sizes = {
        "llama_untrained_250m": (768, 2560, 24, 16),
        "llama_untrained_1_3b": (2048, 5461, 24, 32),
    }
    assert {(c.model.name, c.adapter.name) for c in cells} == {
        (m, a) for m in sizes for a in adapters
    }
    for cell in cells:
        train, shape = cell.train, cell.model.shape
        assert (train.max_steps, train.batch_size, train.max_length) == (10_000, 1024, 512)
        assert (train.schedule, train.warmup_steps) == ("cosine", 1000)
        assert (cell.model.source, cell.embeddings) == ("untrained", "trained")
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        assert tuple(shape[n] for n in names) == sizes[cell.model.name]
        assert shape["vocab_size"] == 32_100
        options = cell.adapter.options
        if cell.adapter.name != "full":
            assert (cell.rank, train.lr) == (128, 5e-4)
        if "every" in options:
            assert (options["every"], options["rewarmup"] * options["every"]) == (2000, 50)
        if cell.adapter.name == "remora":
            assert options["groups"] == "alternate"
        if cell.adapter.name in ("lora", "relora"):
            assert alpha(cell) == 64


def test_every_arm_of_the_embedded_world_meets_every_other(scales):
    """At each rank and seed of a data set there are the arms that claims compare."""
    found = defaultdict(set)
    for cell in scales["micro"]:
        ranks = (2, 8) if cell.adapter.name == "full" else (cell.rank,)
        for rank in ranks:
            found[cell.dataset.name, rank, cell.seed].add(cell.adapter.name)
    paired = {"full", "lora", "mora", "mora_rotation", "relora", "remora", "dora"}
    for dataset in ("micro", "micro_math", "micro_code"):
        for rank in (2, 8):
            for seed in range(4):
                assert paired <= found[dataset, rank, seed]
    for dataset in ("micro", "micro_math"):
        assert {"mora_truncate", "mora_decouple"} <= found[dataset, 2, 0]
    assert all("spectrum_counts" in c.evaluate.measures for c in scales["micro"])


@pytest.mark.parametrize(
    ("scale", "model"), [("micro", "micro_untrained"), ("smoke", "micro_untrained")]
)
def test_pretraining_has_the_full_rank_beside_the_papers_four(scales, scale, model):
    cells = [c for c in scales[scale] if c.model.name == model]
    arms = {(c.adapter.name, c.train.lr, c.seed) for c in cells}
    rates, seeds = {one[1] for one in arms}, {one[2] for one in arms}
    wanted = ("full", "lora", "mora", "relora", "remora")
    assert {(a, lr, s) for a in wanted for lr in rates for s in seeds} <= arms
    assert all(c.embeddings == "trained" for c in cells)


def test_the_smallest_scale_has_every_kind_of_arm(scales):
    cells = scales["smoke"]
    arms = {
        "full",
        "lora",
        "relora",
        "mora",
        "mora_rotation",
        "remora",
        "mora_truncate",
        "mora_decouple",
    }
    assert {c.adapter.name for c in cells} == arms
    assert len(cells) <= 40
