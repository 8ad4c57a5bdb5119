"""The commands of docs/your_data.md and the README for own data, as written, on files made here."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import ablate
from ablate.cli import main
from ablate.paths import conf_dir
from tests.unit.test_data_chat import CHATML, TOOLS

PAGE = (conf_dir().parent / "docs" / "your_data.md").read_text()
COMMANDS = re.findall(r"^```bash\n(ablate .*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
README = (conf_dir().parent / "README.md").read_text().replace("\\\n", " ")
(TABLE,) = re.findall(r"^```yaml\n(weights:.*?)```", PAGE, re.DOTALL | re.MULTILINE)
(TASK,) = re.findall(r"^```yaml\n(task:.*?)```", PAGE, re.DOTALL | re.MULTILINE)
OWN = re.findall(r"^(ablate (?:tokens|plan|sweep) +dataset=.*)$", README, re.MULTILINE)
MICRO = Path(ablate.__file__).parent / "micro" / "checkpoints" / "micro_0"
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}


def talk(number: int, **answer: Any) -> list[dict[str, Any]]:
    said = {"role": "assistant", "content": f"It is {number}.", **answer}
    return [
        {"role": "user", "content": f"Say {number}"},
        said,
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Fine."},
    ]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with every file that the page names, as the working folder."""
    numbers = range(30)
    with (tmp_path / "faq.csv").open("w", newline="") as file:
        rows = [["question", "answer"], *([f"What is {i}?", f"It is {i}, so."] for i in numbers)]
        csv.writer(file, delimiter=";").writerows(rows)
    write(tmp_path / "tickets.jsonl", ({"subject": f"No {i}", "reply": "Yes."} for i in numbers))
    write(tmp_path / "chat.jsonl", ({"messages": talk(i)} for i in numbers))
    write(tmp_path / "rated.jsonl", ({"messages": talk(i, weight=0)} for i in numbers))
    sure = ({"question": f"What is {i}?", "answer": f"It is {i}.", "sure": 0.5} for i in numbers)
    write(tmp_path / "sure.jsonl", sure)
    write(
        tmp_path / "reasons.jsonl",
        ({"messages": talk(i, reasoning_content="I count.")} for i in numbers),
    )
    asked = {"tools": [{"name": "add", "description": "adds"}]}
    write(
        tmp_path / "tools.jsonl",
        (
            {
                "messages": [
                    {"role": "user", "content": f"Add {i}"},
                    {"role": "assistant", "tool_calls": [CALL]},
                    {"role": "tool", "content": str(i)},
                    {"role": "assistant", "content": f"It is {i}."},
                ],
                **asked,
            }
            for i in numbers
        ),
    )
    system = {"role": "system", "content": "Be kind."}
    write(tmp_path / "system.jsonl", ({"messages": [system, *talk(i)]} for i in numbers))
    good = ({"instruction": f"Say {i}", "output": f"It is {i}."} for i in numbers)
    write(tmp_path / "broken.jsonl", [{"instruction": 3, "output": "x"}, *good])
    write(tmp_path / "moods.jsonl", ({"messages": talk(i, mood="kind")} for i in numbers))
    write(tmp_path / "pages.jsonl", ({"text": f"Page {i} of a book."} for i in numbers))
    (tmp_path / "mine.jinja").write_text(CHATML.replace("im_end", "done"))
    (tmp_path / "mine.yaml").write_text('prompt: "Q: {instruction}\\nA: "\n')
    (tmp_path / "my" / "masking").mkdir(parents=True)
    (tmp_path / "my" / "masking" / "style.yaml").write_text(TABLE)
    refusing = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{% endfor %}" + CHATML
    )
    for name, template in (
        ("base", CHATML), ("reasoner", TOOLS), ("nosystem", refusing)
    ):  # fmt: skip
        shutil.copytree(MICRO, tmp_path / name)
        (tmp_path / name / "chat_template.jinja").write_text(template)
    (tmp_path / "boxes.yaml").write_text(TASK)
    boxes = ({"question": f"Box {i}?", "choices": ["red", "blue"], "gold": i % 2} for i in numbers)
    write(tmp_path / "boxes.jsonl", boxes)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SLOW = [pytest.mark.slow]  # trains a dozen runs


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=SLOW * c.startswith("ablate tune")) for c in COMMANDS],
)
def test_a_command_of_the_page(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(shlex.split(command)[1:])
    shown = capsys.readouterr()
    assert status == 0, shown.err
    if " tokens " in command and "broken" not in command:
        assert "left out: none" in shown.out
    if "--save" in command:
        assert "saved for train.lr=tuned: tuned.csv" in shown.out


@pytest.mark.parametrize("command", [c for c in OWN if " sweep " not in c])
def test_a_command_of_the_readme(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_the_sweep_of_the_readme(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (command,) = (c for c in OWN if " sweep " in c)
    status = main(shlex.split(command)[1:])
    shown = capfd.readouterr()
    assert status == 0, shown.err
    # masking=instruction has no weight to vary: 2 + 4 runs and the untouched base
    assert "7 new, 0 failed" in shown.out
    (report,) = folder.glob("results/*/report/index.html")
    assert report.stat().st_size > 10_000


def lengths(model: str, rows: Iterable[list[dict[str, Any]]]) -> list[int]:
    """The tokens of chats as transformers renders and encodes them."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return [len(tokenizer.apply_chat_template(row)["input_ids"]) for row in rows]


CHAT = ("dataset=local", "dataset.template=chat", "model=local", "evaluate=none", "train.lr=1e-3",
        "evaluate.heldout=[]", "adapter=lora", "dataset.splits.train=[0,1]")  # fmt: skip
ALL = ("dataset.splits.validation=[1,1]", "dataset.splits.test=[1,1]")


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], str]:
    """The notes of a plan, and all that it prints."""
    assert main(["plan", *CHAT, *ALL, *words]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    whole = shown.replace("\n  ", " ").splitlines()  # lines that were wrapped
    notes = [line for line in whole if line.startswith("note ")]
    return [line.removeprefix("note ") for line in notes if "training rows" in line], shown


def test_rows_beyond_max_length_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = [(i % 5, "so ") if i % 3 else (30 + i, "on ") for i in range(30)]
    asked = [{"role": "user", "content": word * n + f"{i}?"} for i, (n, word) in enumerate(said)]
    rows = [[a, {"role": "assistant", "content": "yes " * 9}] for a in asked]
    write(folder / "long.jsonl", ({"messages": row} for row in rows))
    whole, heads = lengths("base", rows), lengths("base", ([row[0]] for row in rows))
    start = len(AutoTokenizer.from_pretrained("base").encode("<|im_start|>assistant\n"))
    limit = 64
    lost = sum(head + start >= limit for head in heads)
    cut = sum(size > limit for size in whole) - lost
    assert lost > 3
    assert cut > 3
    (note,), _ = planned(
        capsys, "dataset.path=long.jsonl", "model.path=base", f"train.max_length={limit}"
    )
    assert note == (
        f"dataset=long.jsonl: {lost} of 30 training rows left out ({lost} completion beyond "
        f"train.max_length={limit}), {cut} cut at it; a greater train.max_length keeps more (the "
        "model takes 512 tokens)"
    )
    assert planned(capsys, "dataset.path=long.jsonl", "model.path=base")[0] == []


def test_what_a_template_refuses_is_told_with_its_cure(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = {"role": "system", "content": "Be kind."}
    rows = [[system] * (i < 12) + talk(i) for i in range(30)]
    write(folder / "some.jsonl", ({"messages": row} for row in rows))
    words = ("dataset.path=some.jsonl", "model.path=nosystem")
    (note,), _ = planned(capsys, *words)
    cure = "dataset.system=fold puts its system text into the first request"
    reason = f"12 the chat template says: no system ({cure}), first line "
    assert note.startswith(f"dataset=some.jsonl: 12 of 30 training rows left out ({reason}")
    assert main(["tokens", *CHAT, *ALL, *words]) == 0
    assert cure in " ".join(capsys.readouterr().out.split())
    assert planned(capsys, *words, "dataset.system=fold")[0] == []
    # each model beside the rows that it loses, none for one that loses none
    notes, _ = planned(capsys, words[0], "model.path=nosystem,base")
    assert [line.partition(":")[0] for line in notes] == ["dataset=some.jsonl model=nosystem"]


def test_rows_without_the_answers_that_are_chosen(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told where some rows have none of them, refused before training where all have none."""
    rows = [talk(i) * (1 + (i < 7)) for i in range(30)]
    write(folder / "some.jsonl", ({"messages": row} for row in rows))
    words = ("dataset.path=some.jsonl", "model.path=base", "masking=last_turn")
    each = [sum(message["role"] == "assistant" for message in row) for row in rows]
    most = max(each)
    lacking = sum(n < most for n in each)
    note = f"{lacking} of 30 training rows have no answer of masking.turns=[{most - 1}]"
    assert planned(capsys, *words, f"masking.turns=[{most - 1}]")[0] == [
        f"dataset=some.jsonl: {note}"
    ]
    assert planned(capsys, *words, f"masking.turns=[{most - 1},0]")[0] == []
    for wrong in (most, -most - 1):
        for verb in ("plan", "tokens"):
            assert main([verb, *CHAT, *ALL, *words, f"masking.turns=[{wrong}]"]) == 2
            told = capsys.readouterr().err.strip()
            assert told.endswith(
                f"masking.turns=[{wrong}]: none of the 30 training rows has such an answer; "
                f"they have {min(each)} to {most} each, the first is 0 and the last -1"
            )


def test_models_of_ones_own_have_rows_of_their_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("dataset.path=chat.jsonl", "model.path=./base,./wide", "adapter=lora,full")
    config = LlamaConfig(vocab_size=1100, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                         num_attention_heads=2, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config)
    shutil.copytree("base", "wide", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained("wide")
    _, shown = planned(capsys, *words, "embeddings=trained")
    whole = f"{sum(p.numel() for p in model.parameters()):,}"
    tables = {part.split(":")[0]: part for part in shown.split("model=") if "parameters" in part}
    full = {
        name: next(line.split() for line in part.splitlines() if line.split()[:1] == ["full"])
        for name, part in tables.items()
    }
    assert whole in full["wide"]
    assert whole not in full["base"]
    tied = {name: "token embedding and head are one matrix" in tables[name] for name in full}
    assert tied == {"base": True, "wide": False}


def test_the_run_and_the_report_say_what_is_lost(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [[{"role": "user", "content": "on " * (80 * (i < 10)) + f"{i}?"},
             {"role": "assistant", "content": "yes"}] for i in range(30)]  # fmt: skip
    write(folder / "long.jsonl", ({"messages": row} for row in rows))
    words = [*CHAT, *ALL, "dataset.path=long.jsonl", "model.path=base", "train.max_length=64",
             "train.max_steps=1", "evaluate.measures=[weight_distance]", "out=out"]  # fmt: skip
    assert main(["run", *words]) == 0
    told = "dataset=long.jsonl: 10 of 30 training rows left out (10 completion beyond "
    assert f"note {told}" in " ".join(capfd.readouterr().out.split())
    logs = [file.read_text() for file in (folder / "out" / "cells").glob("*/log.txt")]
    assert sum(told in log for log in logs) == 1  # the untouched base trains on no row
    page = (folder / "out" / "report" / "index.html").read_text()
    assert "Training rows lost." in page
    assert "Of 30 rows of long.jsonl: 10 left out (10 completion beyond max_length)." in page
    lost = pd.read_csv(folder / "out" / "report" / "tables" / "lost_rows.csv")
    assert lost[["dataset", "rows", "lost", "cut"]].to_numpy().tolist() == [
        ["long.jsonl", 30, 10, 0]
    ]


def test_the_page_has_situations_enough() -> None:
    assert len(COMMANDS) >= 20
