"""study=instruction_modelling: its three scales, and its paper scale against what was published."""

from collections import Counter

import pytest

from ablate.config import grid
from ablate.config.compose import expand
from ablate.config.composer import config_loader
from ablate.config.schema import Train
from analysis.table import published

# Table 5's name of each of table 1's data sets.
SETS = {
    "alpagasus_alpaca_5k": "Alpagasus Alpaca 5k", "alpagasus_dolly_3k": "Alpagasus Dolly 3k",
    "alpagasus_dolly_9k": "Alpagasus Dolly 9k", "less_tydiqa": "Less Tydiqa",
    "less_mmlu_chat": "Less MMLU Chat", "less_bbh_icl": "Less BBH ICL", "lima": "LIMA",
}  # fmt: skip
WORDS_TO_TOKENS = 4 / 3


@pytest.fixture(scope="module")
def loader():
    return config_loader()


def cells(loader, name, scale):
    found = list(grid.cells(expand([f"study={name}", f"scale={scale}"], loader=loader)))
    assert [one.error for one in found if one.error] == []
    return [one.cell for one in found]


@pytest.fixture(scope="module")
def paper(loader):
    return cells(loader, "instruction_modelling", "paper")


@pytest.fixture(scope="module")
def micro(loader):
    return cells(loader, "instruction_modelling", "micro")


def setup(cell):
    return cell.masking.name, cell.plw, cell.completion_weight, cell.loss.normaliser


def test_every_paper_cell_is_trained_as_published(paper):
    """Table 6 and appendix C; clipping and the boundary of prompts are not stated there."""
    for cell in paper:
        assert cell.train == Train(
            name="alpaca", lr=2e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0,
            schedule="linear", warmup_ratio=0.03, epochs=cell.train.epochs, batch_size=128,
            clip=1.0, max_length=2048, boundary="segment", precision="bf16",
        )  # fmt: skip
        assert (cell.adapter.name, cell.embeddings) == ("full", "trained")
        assert cell.loss.scope == "example"  # one row a GPU: a mean over each example
        assert cell.regulariser.neftune in (0.0, 5.0)  # one alpha


def test_table_1_and_4_are_there_cell_by_cell(paper):
    """Seven data sets x IT and IM x with and without NEFTune: 28 published runs."""
    scores = published.read("im_scores")
    told = scores[scores["place"].isin(["table 1", "table 4"]) & scores["dataset"].notna()]
    wanted = set(zip(told["dataset"], told["method"], strict=True))
    names = {("instruction", 0.0): "IT", ("im_released", 1.0): "IM"}
    found = set()
    for cell in paper:
        name = names.get((cell.masking.name, cell.plw))
        plain = cell.train.epochs == 2 and cell.model.name == "llama_2_7b"
        plain = plain and not cell.regulariser.kl and cell.completion_weight == 1.0
        if name is None or not plain or cell.dataset.name not in SETS:
            continue
        neftune = cell.regulariser.neftune > 0
        label = ("NEFTUNE" if name == "IT" else "IM+NEFTUNE") if neftune else name
        found.add((SETS[cell.dataset.name], label))
    assert len(wanted) == 28
    assert found == wanted


def test_data_sets_have_the_rows_and_lengths_of_table_5(paper):
    table = published.read("im_datasets").set_index("dataset")
    told = {cell.dataset.name: cell.dataset.published for cell in paper}
    for name, row in SETS.items():
        assert told[name]["rows"] == table.at[row, "n_examples"]
        for ours, theirs in (("prompt", "mean_instruction"), ("completion", "mean_output")):
            words = table.at[row, theirs] - 1  # it counts one more a message
            assert told[name][ours] == pytest.approx(words * WORDS_TO_TOKENS, abs=0.06)


def test_kl_is_that_of_tables_3_and_7(paper):
    table = published.read("im_kl")
    told = table[table["method"] == "IT+KL"]
    wanted = set(zip(told["dataset"], told["lambda"], strict=True))
    true = {(SETS[c.dataset.name], c.regulariser.kl) for c in paper if c.regulariser.kl}
    assert true == wanted
    # The released term leaves (1 - lambda) of the loss; at lambda 1 nothing, which is the base.
    scaled = {round(1 - c.completion_weight, 9) for c in paper if c.completion_weight < 1}
    assert scaled == {at for name, at in wanted if name == "LIMA"} - {1.0}
    assert {c.loss.normaliser for c in paper if c.completion_weight < 1} == {"nonzero"}


def test_figures_4_5_and_6_have_their_cells(paper):
    both = {("instruction", 0.0, 1.0, "weight"), ("im_released", 1.0, 1.0, "weight")}
    epochs = Counter(c.dataset.name for c in paper if c.train.epochs > 2)
    sets = {"lima", "alpagasus_dolly_9k", "alpagasus_dolly_3k", "less_mmlu_chat", "less_tydiqa"}
    assert epochs == dict.fromkeys(sets, 2 * 8)
    larger = [c for c in paper if c.model.name == "llama_2_13b"]
    assert {c.dataset.name for c in larger} == set(SETS)
    assert {setup(c) for c in larger} == both
    table = published.read("im_datasets").set_index("dataset")["n_examples"]
    tulu = {c.dataset.max_rows for c in paper if c.dataset.name == "tulu_v2"}
    parts = {int(table[f"Tulu V2 ({share}%)"]) for share in (10, 20, 50)}
    assert tulu == parts | {None}
    assert {c.dataset.max_rows for c in paper if c.dataset.name == "wizardlm"} == {
        int(table["WizardLM"])
    }


def test_the_modes_that_the_paper_has_not_run_on_the_same_sets(paper):
    extra = {
        name: {c.dataset.name for c in paper if c.masking.name == name}
        for name in ("special", "boilerplate", "none")
    }
    assert all(sets == set(SETS) for sets in extra.values())


def test_ratio_and_rows_are_crossed_in_the_embedded_world(micro):
    plain = {
        (c.masking.name, c.dataset.options["rg"], c.dataset.options["train_size"])
        for c in micro
        if c.model.name == "micro_0" and c.train.epochs == 3 and c.loss.scope == "batch"
        and c.regulariser.name == "none" and c.completion_weight == 1.0
    }  # fmt: skip
    ratios, sizes = ({one[i] for one in plain} for i in (1, 2))
    assert len(ratios) >= 6
    assert len(sizes) >= 5
    modes = ("instruction", "none", "boilerplate")
    assert plain == {(m, r, n) for m in modes for r in ratios for n in sizes}


def test_every_arm_of_the_embedded_world_has_its_partner(micro):
    """An arm is compared with IT at the same setting, data, model and seed, or with plain IT."""

    def place(cell, regulariser):
        return (
            cell.model.name, tuple(sorted(cell.dataset.options.items())), cell.seed,
            cell.train.epochs, cell.loss.scope, regulariser,
        )  # fmt: skip

    masked = {
        place(c, c.regulariser.name)
        for c in micro
        if c.masking.name == "instruction" and c.completion_weight == 1.0
    }
    for cell in micro:
        if cell.plw > 0:
            assert place(cell, cell.regulariser.name) in masked
        elif cell.regulariser.name != "none" or cell.completion_weight < 1:
            assert place(cell, "none") in masked
    assert {c.regulariser.name for c in micro} == {"none", "neftune", "kl"}
    assert {c.train.epochs for c in micro} == {2, 3, 4, 6, 10}
    assert ("im_released", "example") in {(c.masking.name, c.loss.scope) for c in micro}


def test_the_embedded_study_stays_within_its_budget(micro):
    assert len(micro) == len({repr(c) for c in micro}) <= 600


def test_cells_are_shared_with_when_to_mask(loader, micro):
    """All that decides what is trained is the same, so that one folder serves both studies."""

    def runs(found):
        return {repr((c.dataset, c.model, c.masking, c.plw, c.train, c.seed, c.loss,
                      c.regulariser, c.adapter, c.embeddings)) for c in found}  # fmt: skip

    other = runs(cells(loader, "when_to_mask", "micro"))
    # Six of its ratios at its four sizes, IT and the whole sequence, three seeds; and micro_1.
    assert len(runs(micro) & other) == 6 * 4 * 2 * 3 + 6 * 2 * 2


def test_the_smallest_scale_has_every_kind_of_arm(loader):
    found = cells(loader, "instruction_modelling", "smoke")
    assert {c.masking.name for c in found} == {"instruction", "none", "boilerplate"}
    assert {c.regulariser.name for c in found} == {"none", "neftune", "kl"}
    assert len(found) <= 60
