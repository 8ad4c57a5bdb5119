"""`ablate init`: writes a commented study, and levels for the user's own rows and model."""

import argparse
import json
import os
import re
from pathlib import Path

from ablate.commands.verb import Flag, Verb
from ablate.errors import UserError, brief
from ablate.paths import check_folder, check_name, conf_dir
from ablate.terminal import CONSOLE

TEMPLATES = Path(__file__).parent / "templates"
NAMES = tuple(sorted(path.stem for path in TEMPLATES.glob("*.yaml")))
DEFAULT = "weights"
DIR = "my_conf"
CHATS = ("messages", "conversations", "conversation", "chat")  # columns of rows that are chats


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    if len(rest) != 1:
        raise UserError("init: name the study to write, as in `ablate init mine`")
    (study,), folder = rest, Path(given.to or given.config_dir or DIR)
    _check_study(study)
    template = (TEMPLATES / f"{given.template or DEFAULT}.yaml").read_text(encoding="utf-8")
    rows, base = given.data is not None, given.model is not None
    words = {
        "STUDY": study,
        "DIR": str(folder),
        "DATASET": f"{study}_rows" if rows else "micro  # or your rows: `ablate init --data FILE`",
        "MODEL": f"{study}_base" if base else "micro_0  # or your model: `ablate init --model DIR`",
        "TRAIN": "alpaca" if base else "micro",
        "EVALUATE": "micro" if not (rows or base) else "none  # the held-out loss alone",
    }
    files = {folder / "study" / f"{study}.yaml": _filled(template, words)}
    if rows:
        files[folder / "dataset" / f"{study}_rows.yaml"] = _dataset(study, Path(given.data))
    if base:
        files[folder / "model" / f"{study}_base.yaml"] = _model(study, Path(given.model))
    _write(folder, files)
    for path in files:
        CONSOLE.print(f"written: {path}", soft_wrap=True, markup=False)
    CONSOLE.print(f"next: ablate plan --config-dir {folder} study={study}", soft_wrap=True)
    return 0


def _check_study(study: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", study):
        allowed = "letters, digits and underscores, a letter first"
        raise UserError(f"init {brief(study)}: must be a name of {allowed}")
    if (conf_dir() / "study" / f"{study}.yaml").exists():
        raise UserError(f"init {study}: is the name of a shipped study; choose another")


def _filled(text: str, words: dict[str, str]) -> str:
    """Return a template with its words put in."""
    for name, word in words.items():
        text = text.replace(f"@{name}@", word)
    return text


def _dataset(study: str, path: Path) -> str:
    """Return the level of the user's rows; chats are given the chat template."""
    check_name("--data", path)
    if not path.exists():
        raise UserError(f"--data={path}: no such file or folder")
    template = "chat" if _columns(path) & set(CHATS) else "alpaca"
    return (
        f"# Rows of {study}; `ablate tokens --config-dir DIR dataset={study}_rows` shows them.\n"
        f"name: {study}_rows\n"
        "source: local\n"
        f"path: {json.dumps(os.path.abspath(path), ensure_ascii=False)}\n"
        "format: auto  # how a row is read: alpaca, prompt_completion, messages or text\n"
        f"template: {template}  # how it becomes text: alpaca, compact, chat, plain or FILE.yaml\n"
        "# columns: {instruction: question, output: answer}  # where yours have other names\n"
        "# on_bad_row: drop  # leave out what is no example, instead of refusing\n"
    )


def _columns(path: Path) -> set[str]:
    """Return the names of the columns of the first row of a JSON or JSONL file; else none."""
    try:
        with path.open(encoding="utf-8") as file:
            head = file.read(100_000)
        first, _ = json.JSONDecoder().raw_decode(head.lstrip("[ \r\n\t\ufeff"))
    except (OSError, ValueError):
        return set()
    return set(first) if isinstance(first, dict) else set()


def _model(study: str, path: Path) -> str:
    """Return the level of the user's base model."""
    check_name("--model", path)
    if not (path / "config.json").is_file():
        raise UserError(f"--model={path}: no such folder with a config.json")
    return (
        f"# The base model of {study}, a folder in the hub's format.\n"
        f"name: {study}_base\n"
        "source: local\n"
        f"path: {json.dumps(os.path.abspath(path), ensure_ascii=False)}\n"
    )


def _write(folder: Path, files: dict[Path, str]) -> None:
    """Write all files or none; what is there already is never written over."""
    check_folder("--to", folder)
    for path in files:
        if os.path.lexists(path):
            raise UserError(f"{path}: is there already; choose another name, or remove it first")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)


VERB = Verb(
    name="init",
    summary="write a commented study of your own, ready to plan and to sweep",
    about=(
        "Writes DIR/study/STUDY.yaml: a question, factors with their levels, seeds, scores, and "
        "three scales (smoke, micro, full), a comment behind each line. It works as it is, on the "
        "embedded model; --data and --model put your rows and your base model into it. Nothing "
        "that is there is written over."
    ),
    words="STUDY",
    options=(
        Flag("--template", f"which question to start from: {', '.join(NAMES)} (default: {DEFAULT})",
             "NAME", choices=NAMES),
        Flag("--data", "your rows: JSON, JSONL, CSV, parquet or a `datasets` folder", "FILE"),
        Flag("--model", "your base model, a folder in the hub's format", "DIR"),
        Flag("--to", f"the folder of levels to write into (default: {DIR})", "DIR"),
    ),
    examples=(
        "ablate init mine",
        "ablate init mine --template adapters --to my_conf",
        "ablate init mine --data rows.jsonl --model ./base",
    ),
    run=_run,
)  # fmt: skip
