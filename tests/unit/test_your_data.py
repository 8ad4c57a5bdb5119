"""The commands of docs/your_data.md and the README for own data, as written, on files made here."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

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


def test_the_page_has_situations_enough() -> None:
    assert len(COMMANDS) >= 16
