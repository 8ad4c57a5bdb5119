"""The instruction sets: the paper's ratios, no leak into the benchmarks, clear errors."""

import re

import pytest

from ablate.errors import UserError
from ablate.micro import tasks
from ablate.micro.instructions import SETS, rows
from ablate.micro.world import world

INSTRUCTION_SETS = ("micro", "micro_cleaned", "micro_short", "micro_designed")
PARTS = ("train", "validation", "test")
LEVELS = (0.09, 0.16, 0.33, 0.7, 1.0, 2.0, 4.0, 8.0)


def _tokens(text: str) -> int:
    """Count words, marks and digits: what the micro tokenizer makes of this text."""
    return len(re.findall(r"[A-Za-z]+|\d|[^\w\s]", text))


def _ratio(records: list[dict]) -> float:
    prompt = sum(_tokens(r["instruction"]) + _tokens(r["input"]) for r in records)
    return sum(_tokens(r["output"]) + 1 for r in records) / prompt


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("part", PARTS)
def test_rows_are_the_same_again(name, part):
    options = {"train_size": 50} if "train_size" in SETS[name][0] else {}
    assert rows(name, part, options) == rows(name, part, options)


@pytest.mark.parametrize(
    ("name", "published"), [("micro", 3.27), ("micro_cleaned", 7.83), ("micro_short", 0.08)]
)
def test_generation_ratio_is_near_the_papers(name, published):
    assert _ratio(rows(name, "train", {})) == pytest.approx(published, rel=0.1)


@pytest.mark.parametrize("rg", LEVELS)
def test_designed_ratio_is_what_was_asked(rg):
    assert _ratio(rows("micro_designed", "train", {"rg": rg})) == pytest.approx(rg, rel=0.03)


def test_designed_sets_state_the_same_facts_at_every_ratio():
    def told(rg: float) -> list[list[str]]:
        made = rows("micro_designed", "train", {"rg": rg, "train_size": 100})
        return [
            [row["instruction"], *sorted(f"{row['input']} {row['output']}".split())] for row in made
        ]

    assert told(0.08) == told(1.0) == told(8.0)


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
@pytest.mark.parametrize("part", PARTS)
def test_no_benchmark_triple_is_in_any_row(name, part):
    evaluated = tasks.evaluated_triples()
    used = {tuple(triple) for row in rows(name, part, {}) for triple in row["triples"]}
    assert len(used) > 50
    assert not used & evaluated


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_no_row_names_a_person_whom_a_benchmark_asks_about(name):
    secret = {p.name for group in ("source", "asked") for p in world().people[group]}
    for row in rows(name, "train", {}):
        text = f"{row['instruction']} {row['input']} {row['output']}"
        names = set(re.findall(r"(?=\b([A-Z]\w+ [A-Z]\w+))", text))
        assert not names & secret


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_parts_share_no_row(name):
    texts = {part: {(r["instruction"], r["input"]) for r in rows(name, part, {})} for part in PARTS}
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


def test_a_thousand_distinct_instruction_surfaces():
    surfaces = {row["instruction"] for name in INSTRUCTION_SETS for row in rows(name, "train", {})}
    assert len(surfaces) >= 1000


def test_the_short_set_is_inverted():
    row = rows("micro_short", "train", {})[0]
    person = next(p for p in world().people["tune"] if p.name in row["input"])
    assert person.name in row["output"]
    assert len(row["input"]) > 5 * len(row["output"])


def test_uuid_pairs_are_as_many_as_asked_and_the_same_in_all_parts():
    pairs = rows("micro_uuid", "train", {"pairs": 1000})
    assert len({r["instruction"] for r in pairs}) == 1000
    assert rows("micro_uuid", "test", {"pairs": 1000}) == pairs[:200]


@pytest.mark.parametrize(
    ("path", "part", "options", "words"),
    [
        ("micr", "train", {}, "Did you mean 'micro'?"),
        ("micro", "dev", {}, "part=dev"),
        ("micro", "train", {"rg": 2}, "dataset.options=rg"),
        ("micro_designed", "train", {"rg": 9}, "in [0.08, 8]"),
        ("micro_designed", "train", {"rg": "much"}, "dataset.options.rg=much"),
        ("micro", "train", {"train_size": 0}, "dataset.options.train_size=0"),
        ("micro_uuid", "train", {"pairs": 1.5}, "dataset.options.pairs=1.5"),
    ],
)
def test_a_bad_request_is_one_clear_line(path, part, options, words):
    with pytest.raises(UserError) as caught:
        rows(path, part, options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
