"""The masks of TRL's training templates beside ours: `pip install trl==1.16.0`, then run this.

    python benchmarks/trl_masks.py [--out benchmarks/trl_masks.csv]

For every `NAME_training.jinja` that TRL ships: conversations under it, with a tokenizer of bytes
that knows the template's tags. TRL's mask is what transformers returns for the template's own
`{% generation %}` marks. Ours twice: of the same template (`with marks`), and of the template
without the marks, where the answers are found from what the template does (`without`).
"""

import argparse
import csv
import importlib.util
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from ablate.data.jinja import parted
from ablate.data.templates import render
from ablate.data.tokenizer import Tokenizer
from ablate.errors import RowError, UserError
from tests.unit.conftest import byte_level, save
from tests.unit.test_chat_shapes import ADD, CONVERSATIONS, DATASET, labelled, row_of

ANSWER = set("CETK")
MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
DAY = re.compile(r"strftime_now\([^()]*\)")  # what changes from day to day
TAGS = re.compile(r"<\|[^<>|{}\s]+\|>|<\|?/?[a-z_]+\|?>|<[｜][^<>]+[｜]>|\[/?[A-Z_]+\]")


def main() -> None:
    """Write a row for each template, conversation and way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("benchmarks/trl_masks.csv"))
    parser.add_argument(
        "--templates", type=Path, help="TRL's chat_templates, if it is not installed"
    )
    given = parser.parse_args()
    rows = [row for file in sorted(_folder(given.templates).glob("*_training.jinja"))
            for row in compared(file)]  # fmt: skip
    with given.out.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for way in ("with marks", "without"):
        own = [r["found"] for r in rows if r["way"] == way]
        print(way, {name: own.count(name) for name in sorted(set(own))})


def _folder(given: Path | None) -> Path:
    spec = importlib.util.find_spec("trl")
    if given is None and (spec is None or spec.origin is None):
        sys.exit("TRL is not installed: pip install trl==1.16.0, or --templates FOLDER")
    return given or Path(str(spec and spec.origin)).parent / "chat_templates"


def compared(file: Path) -> list[dict[str, Any]]:
    """Return the rows of one template."""
    marked = DAY.sub('"2026-01-31"', file.read_text(encoding="utf-8"))
    name = file.stem.removesuffix("_training")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        theirs = PreTrainedTokenizerFast.from_pretrained(_made(marked, Path(place) / "theirs"))
        for way, template in (("with marks", marked), ("without", MARKS.sub("", marked))):
            ours = Tokenizer(_made(template, Path(place) / way, tags=TAGS.findall(marked)))
            for talk, (messages, tools) in CONVERSATIONS.items():
                found, where = _one(theirs, ours, messages, tools)
                rows.append({"template": name, "conversation": talk, "way": way, "found": found,
                             "first_difference": where})  # fmt: skip
    return rows


def _made(template: str, folder: Path, tags: list[str] | None = None) -> Path:
    names = dict.fromkeys([*(TAGS.findall(template) if tags is None else tags), "</s>"])
    backend = byte_level([])
    backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    return save(folder, backend, chat_template=template, eos_token="</s>", bos_token="<|bos|>")


def _one(
    theirs: PreTrainedTokenizerFast, ours: Tokenizer, messages: list[dict[str, Any]], tools: bool
) -> tuple[str, str]:
    """Return how the masks compare, and the text around the first difference."""
    asked = parted(messages, ours.takes.in_parts)
    try:
        both = theirs.apply_chat_template(
            asked, tools=[ADD] if tools else None, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
    except Exception:  # a template is a program
        return "refused by the template", ""
    try:
        found = render(row_of(messages, tools, DATASET), DATASET, ours)
        tokens = labelled(found, ours)
    except (RowError, UserError) as error:
        return "refused here", str(error)
    if ours.encode(found.text).ids.tolist() != both["input_ids"]:
        return "other ids", ""
    mask = [int(label in ANSWER) for _, label in tokens]
    other = [
        i for i, (a, b) in enumerate(zip(mask, both["assistant_masks"], strict=True)) if a != b
    ]
    if not other:
        return "equal", ""
    i = other[0]
    at = "".join(text for text, _ in tokens[max(0, i - 12) : i + 12])
    return "different", f"{len(other)} tokens, ours {mask[i]}: {at!r}"


if __name__ == "__main__":
    main()
