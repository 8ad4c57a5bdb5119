"""The preview shows the weights the loss uses, every token, and nothing from outside."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ablate.commands import token_view as module
from ablate.commands.token_page import html
from ablate.commands.token_text import preview
from ablate.commands.token_view import facts, look, visible
from ablate.config.schema import (
    Adapter,
    Cell,
    Dataset,
    Evaluate,
    Execution,
    Loss,
    Masking,
    Model,
    Splits,
    Train,
)
from ablate.data.tokenise import Labels
from ablate.experiment import cell_data
from ablate.objective import make_objective
from ablate.roles import MASKED_ROLES, Role

pytestmark = pytest.mark.usefixtures("own_cache")
WHOLE = Splits(train=(0.0, 1.0), validation=(1.0, 1.0), test=(1.0, 1.0))


@pytest.fixture
def cell(
    tokenizer_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Cell:
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": f"Say <b>{i}</b>\nnow", "completion": f"é {i}"} for i in range(5)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    folder = tokenizer_folders["bytes"]
    monkeypatch.setattr(cell_data, "resolve", lambda _: SimpleNamespace(folder=folder))
    weights: dict[str, Any] = dict.fromkeys(MASKED_ROLES, "plw")
    weights |= {"completion": 1.0, "special": 0.0, "boilerplate": 0.0}
    return Cell(
        masking=Masking(name="boilerplate", weights=weights),
        plw=0.1,
        loss=Loss(),
        adapter=Adapter(name="full", kind="full"),
        rank=8,
        dataset=Dataset(name="d", source="local", path=str(path), template="chat", splits=WHOLE),
        model=Model(name="m", source="local", path=str(folder)),
        train=Train(name="t", lr=1e-3),
        evaluate=Evaluate(name="e"),
        execution=Execution(),
    )


def test_of_a_long_data_set_the_first_records_are_enough(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEW", 3)
    seen = look(cell, 2)
    assert seen.summary.rows == 3
    assert facts(seen)[0] == ("of", "the first 3 records; ablate plan counts all")
    whole = cell_data.tokenised(cell, "train")
    seen = look(cell, 2)  # what is known anyway is shown
    assert seen.summary == whole.summary
    assert seen.summary.rows == 5
    assert facts(seen)[0][0] == "rows to train on"


def test_every_token_has_its_role_and_weight(cell: Cell) -> None:
    seen = look(cell, 2)
    assert len(seen.examples) == 2
    for tokens in seen.examples:
        assert tokens[0].weight is None
        expected = {Role.COMPLETION: 1.0, Role.INSTRUCTION: 0.1, Role.SPECIAL: 0.0}
        for token in tokens[1:]:
            assert token.weight == pytest.approx(expected.get(token.role, 0.0))
        text = "".join(t.shown for t in tokens)
        assert "Say·<b>" in text
        assert text.startswith("<|im_start|>system↵Be·kind·to·all.<|im_end|>↵<|im_start|>user↵")
    # é, space, digit and the stop token of every row, é in two bytes: 5 x 5 of all targets
    lines = {line.name: line for line in seen.roles}
    assert (lines["completion"].targets, lines["completion: stop"].targets) == (5 * 4, 5)
    assert lines["special: generation prompt"].weight == "0"
    prompt = 5 * len("Say <b>0</b>\nnow")
    assert lines["instruction"].targets == prompt
    total = sum(line.targets for line in seen.roles)
    assert seen.supervised == pytest.approx((25 + prompt) / total)
    assert lines["completion"].weight_share == pytest.approx(20 / (25 + 0.1 * prompt))


def test_the_terminal_shows_text_weights_and_figures(cell: Cell) -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    for part in preview(cell, 1):
        console.print(part)
    text = out.getvalue()
    for expected in ("masking=boilerplate", "Rg (after", "instruction", "₍0.1₎", "₍1₎", "₍–₎"):
        assert expected in text
    assert "example 1" in text
    assert "example 2" not in text


def test_the_page_is_whole_in_itself_and_escaped(cell: Cell) -> None:
    page = html(cell, 3)
    assert page.startswith("<!doctype html>")
    assert not re.search(r"(src|href)\s*=|@import|url\(", page)
    assert page.count("Example ") == 3
    assert "<b>" not in page
    tokens = sum(len(tokens) for tokens in look(cell, 3).examples)
    assert page.count("title='id ") == tokens


def test_the_placebo_is_shown_with_the_draws_that_training_uses(cell: Cell) -> None:
    import dataclasses

    from ablate.streams import Streams

    weights = dict(cell.masking.weights)
    masking = Masking(name="placebo", weights=weights, permute=True)
    shuffled = dataclasses.replace(cell, masking=masking, seed=3)
    tokens = look(shuffled, 1).examples[0]
    plain = look(cell, 1).examples[0]
    roles_L = np.array([t.role for t in tokens], dtype=np.uint8)
    objective = make_objective(masking, 0.1, 1.0, Loss())
    num_L, _ = module.row_weights(
        Labels.of(roles_L), objective, row=0, permute=Streams(3, "a").numpy("permute")
    )
    assert [t.weight for t in tokens[1:]] == pytest.approx(num_L[1:].tolist())
    assert sorted(t.weight or 0 for t in tokens) == sorted(t.weight or 0 for t in plain)
    assert [t.weight for t in tokens] != [t.weight for t in plain]


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen", "bytes"])
def test_pieces_put_together_are_the_text(name: str, tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = module.Tokenizer(tokenizer_folders[name])
    text = "The quick  brown fox\n\tjumps"
    pieces = [module._piece(tokenizer, i) for i in tokenizer.encode(text).ids]
    assert "".join(pieces).strip() == text
    parts = [module._piece(tokenizer, i) for i in tokenizer.encode("漢").ids]
    assert all(part.isprintable() for part in map(visible, parts))


def test_white_space_and_control_characters_are_seen() -> None:
    assert visible("a b\n\t\r\x00\u200b") == "a·b↵⇥␍\\u0000\\u200b"
