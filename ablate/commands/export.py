"""`ablate export`: the weights of a recorded cell, for use elsewhere."""

import argparse
from pathlib import Path

from ablate.commands.verb import CELL, DEFAULT, Flag, Verb
from ablate.errors import UserError
from ablate.terminal import CONSOLE


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.results.named import named, record_in

    folder = named("export", rest, default=DEFAULT)
    if given.to is None:
        raise UserError("export: needs a folder to write: --to DIR")
    record_in(folder)  # before torch is imported, which takes seconds
    from ablate.export import export

    written = export(str(folder), Path(given.to), merge=given.merge, retrain=given.retrain)
    CONSOLE.print(f"written: {written}", soft_wrap=True)
    return 0


VERB = Verb(
    name="export",
    summary="the weights of a recorded cell, for PEFT or transformers, with a model card",
    about=(
        "Writes a cell's adapter as PEFT loads it, or with --merge a whole model as transformers "
        "loads it, with the tokenizer and a model card made from the record."
    ),
    words=CELL,
    options=(
        Flag("--to", "the folder to write, new or empty", "DIR"),
        Flag("--merge", "a whole model, with the adapter merged into the base's weights"),
        Flag("--retrain", "train the cell again where its weights were not kept"),
    ),
    examples=(
        "ablate export results/mine/cells/3f2a --to adapter",
        "ablate export 3f2a results/mine --merge --to model",
        "ablate export results/mine/cells/3f2a --retrain --to adapter",
    ),
    run=_run,
)
