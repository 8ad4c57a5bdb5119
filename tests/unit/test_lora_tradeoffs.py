"""study=lora_tradeoffs: its three scales, and its paper scale against what was published."""

from collections import Counter

import pytest

from ablate.config import grid
from ablate.config.compose import expand
from ablate.config.composer import config_loader
from analysis.table import published

STEP = 192 * 4096  # tokens
# Tables 1 to 4 of the paper's appendix, and the authors' repository for the rate of full tuning on
# code instructions: method and rank -> rate.
RATES = {
    "starcoder_python": {0: 1e-5, 16: 1e-5, 64: 1e-5, 256: 1e-5},
    "open_web_math": {0: 1e-5, 16: 4e-5, 64: 4e-5, 256: 4e-5},
    "magicoder": {0: 5e-5, 16: 2e-4, 64: 2e-4, 256: 1e-4},
    "metamath": {0: 1e-5, 16: 1e-4, 64: 1e-4, 256: 5e-5},
    "tulu_v2": {0: 5e-6, 16: 1e-4, 64: 1e-4, 256: 1e-4},
}
PUBLISHED_AS = {
    "starcoder_python": "StarCoder-Python", "open_web_math": "OpenWebMath",
    "magicoder": "Magicoder-Evol-Instruct-110K", "metamath": "MetaMathQA",
    "tulu_v2": "Tulu-v2-mix",
}  # fmt: skip
TEXTS, INSTRUCTIONS = ("micro_math", "micro_code"), "_instructions"


@pytest.fixture(scope="module")
def loader():
    return config_loader()


def cells(loader, scale):
    found = list(grid.cells(expand(["study=lora_tradeoffs", f"scale={scale}"], loader=loader)))
    assert [one.error for one in found if one.error] == []
    return [one.cell for one in found]


@pytest.fixture(scope="module")
def paper(loader):
    return cells(loader, "paper")


@pytest.fixture(scope="module")
def micro(loader):
    return cells(loader, "micro")


def rank(cell):
    return 0 if cell.adapter.name == "full" else cell.rank


def main(found):
    """Return the cells of the tables: LoRA on all modules or full tuning, each at its rate."""
    return [
        c for c in found
        if c.optimizer.name == "lion" and c.placement.name == "all"
        and c.regulariser.name == "none" and c.adapter.options.get("alpha") is None
        and c.train.lr == RATES[c.dataset.name].get(rank(c))
    ]  # fmt: skip


def budget(cell):
    """Return what the tables have as x: billions of tokens, or epochs."""
    steps = cell.train.max_steps
    return cell.train.epochs if steps is None else round(steps * STEP / 1e9, 2)


def test_every_published_number_has_its_cell(paper):
    """Tables S1 to S13: setting x method x budget, one run each."""
    table = published.read("lora_tradeoffs")
    table = table[table["source"].eq("table") & table["dataset"].isin(PUBLISHED_AS.values())]
    ranks = table["rank"].fillna("0").astype(int)
    wanted = set(zip(table["dataset"], ranks, table["x"].astype(float), strict=True))
    found = Counter((PUBLISHED_AS[c.dataset.name], rank(c), budget(c)) for c in main(paper))
    assert len(wanted) == 2 * 4 * 8 + 2 * 4 * 5 + 4 * 3
    assert set(found) >= wanted
    assert {count for place, count in found.items() if place in wanted} == {1}


def test_every_paper_cell_is_trained_as_published(paper):
    for cell in paper:
        train, full = cell.train, cell.adapter.name == "full"
        assert cell.model.name == "llama_2_7b"
        assert (train.betas, train.clip, train.precision) == ((0.9, 0.95), 1.0, "bf16")
        assert (cell.embeddings == "trained") == full
        assert full or cell.adapter.options["dropout"] == 0.05
        if cell.dataset.format == "text":
            assert (train.schedule, train.warmup_steps, train.cooldown_ratio) == (
                "trapezoid", 1000, 0.2,
            )  # fmt: skip
            assert (train.batch_size, train.batch_unit, train.max_length) == (STEP, "tokens", 4096)
            # DecoupledLionW shrinks by decay x rate / first rate, and 1e-6 is its decay on code.
            shrinks = 1e-6 if cell.dataset.name == "starcoder_python" else 0.0
            assert train.lr * train.weight_decay == pytest.approx(shrinks)
        else:
            assert (train.schedule, train.warmup_ratio, train.min_lr_ratio) == ("cosine", 0.1, 0.01)
            assert train.weight_decay == 0.0
            length = 1024 if cell.dataset.name == "metamath" else 4096
            assert train.max_length == length
    assert round(0.2 * 25431) == 5086  # its cooldown, printed in steps
    (examples,) = {c.train.batch_size for c in paper if c.dataset.name == "magicoder"}
    (rows,) = {c.dataset.published["rows"] for c in paper if c.dataset.name == "magicoder"}
    assert rows / examples == pytest.approx(193, abs=0.5)  # steps an epoch, printed


def test_alpha_is_twice_the_rank_but_where_alpha_is_the_question(paper):
    for cell in main(paper):
        if rank(cell):
            assert cell.adapter.options["alpha_over_rank"] == 2.0
    alphas = {(c.rank, c.adapter.options["alpha"]) for c in paper if c.adapter.options.get("alpha")}
    assert alphas == {(64, 32), (256, 32), (256, 256), (256, 512)}


def test_the_other_figures_have_their_cells(paper):
    code = [c for c in paper if c.dataset.name == "magicoder"]
    held = {
        (c.regulariser.name, c.regulariser.weight_decay, c.regulariser.attention_dropout,
         c.train.epochs)
        for c in code if c.regulariser.name != "none"
    }  # fmt: skip
    strengths = [("weight_decay", decay / 5e-5, 0.0) for decay in (5e-5, 1e-4)]
    strengths += [("attention_dropout", None, share) for share in (0.05, 0.1)]
    assert held == {(*one, epochs) for one in strengths for epochs in (1, 2, 4, 8, 16)}
    placed = {(c.placement.name, c.rank, c.train.epochs) for c in code
              if c.placement.name in ("attention", "mlp")}  # fmt: skip
    assert placed == {
        (p, r, e) for p in ("attention", "mlp") for r in (16, 64, 256) for e in (1, 2, 4)
    }
    best = {("magicoder", "full"): 5e-5, ("magicoder", "lora"): 5e-4,
            ("metamath", "full"): 1e-5, ("metamath", "lora"): 2e-4}  # fmt: skip
    for (data, adapter), rate in best.items():
        swept = {
            c.train.lr for c in paper
            if (c.dataset.name, c.adapter.name, c.train.epochs) == (data, adapter, 2)
            and (adapter == "full" or c.placement.name == "no_gate") and c.optimizer.name == "lion"
        }  # fmt: skip
        assert min(swept) < rate < max(swept)
    assert {c.adapter.name for c in code if c.optimizer.name == "adamw"} == {"full", "lora"}


def test_learning_and_forgetting_are_scored_by_stock_tasks(paper):
    three = {"hellaswag", "arc_challenge", "winogrande"}
    learnt = {
        "starcoder_python": {"humaneval"},
        "magicoder": {"humaneval"},
        "open_web_math": {"gsm8k"},
        "metamath": {"gsm8k"},
        "tulu_v2": {"gsm8k", "mmlu"},
    }
    for cell in paper:
        assert set(cell.evaluate.tasks) == three | learnt[cell.dataset.name]
        assert not cell.evaluate.run_code  # whoever runs it consents to HumanEval
        assert cell.evaluate.shots("gsm8k") == (None if "humaneval" in cell.evaluate.tasks else 5)


def test_every_method_of_the_embedded_world_has_its_own_rates(micro):
    """Four rates for each method at every budget of every setting, on as many seeds."""
    places = Counter()
    for c in micro:
        plain = c.optimizer.name == "lion" and c.placement.name == "all"
        plain = plain and c.regulariser.name == "none" and c.adapter.options.get("alpha") is None
        if plain and (c.adapter.name == "full") == (c.embeddings == "trained"):
            length = c.train.max_steps or c.train.epochs
            places[c.dataset.name, rank(c), length, c.train.lr] += 1
    assert set(places.values()) == {3}
    names = {*TEXTS, *(n + INSTRUCTIONS for n in TEXTS)}
    assert {(n, r) for n, r, _, _ in places} == {(n, r) for n in names for r in (0, 1, 4, 16)}
    swept = {(n, r, b): set() for n, r, b, _ in places}
    for n, r, b, rate in places:
        swept[n, r, b].add(rate)
    assert all(len(rates) == 4 for rates in swept.values())


def test_budgets_of_the_embedded_world_are_branches_of_one_run(micro):
    """As many steps of warmup at every budget, which then share all but their last fifth."""
    text = [c for c in micro if c.dataset.name in TEXTS]
    assert {(c.train.schedule, c.train.warmup_steps, c.train.cooldown_ratio) for c in text} == {
        ("trapezoid", 10, 0.2)
    }
    assert {c.train.max_steps for c in text} == {50, 100, 200, 400}


def test_the_scales_stay_within_their_budgets(loader, micro):
    smoke = cells(loader, "smoke")
    assert len(micro) == len({repr(c) for c in micro}) <= 1000
    assert len(smoke) <= 120
    for part in ("placement", "regulariser", "optimizer", "embeddings"):
        assert len({str(getattr(c, part)) for c in smoke}) > 1
