"""`ablate verify`: trains a recorded cell again and says whether it reproduces."""

import argparse
from typing import TYPE_CHECKING

from ablate.commands.verb import CELL, DEFAULT, Verb
from ablate.terminal import CONSOLE

if TYPE_CHECKING:
    from ablate.verify import Verdict


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.results.named import named, record_in
    from ablate.results.store import Store

    folder = named("verify", rest, default=DEFAULT)
    record_in(folder)  # before torch is imported, which takes seconds
    from ablate.verify import verify

    CONSOLE.print(f"{folder.name}: is trained and scored again, in a folder of its own")
    verdict = verify(Store(folder.parents[1]), folder.name)
    render(verdict)
    return 0 if verdict.same else 1


def render(verdict: "Verdict") -> None:
    """Print what was compared, what differs, and in which environment."""
    for part in verdict.parts:
        told = "" if part.name == "not compared" else "equal"
        told = f"differ: {part.difference}" if part.difference else told
        CONSOLE.print(f"  {part.name:<12} {part.size:<14} {told}".rstrip(), soft_wrap=True)
    for line in verdict.environment:
        CONSOLE.print(f"  another environment: {line}", soft_wrap=True, markup=False)
    if verdict.same:
        CONSOLE.print("reproduces, bit for bit")
    elif verdict.environment:
        CONSOLE.print("does not reproduce bit for bit; the environment is another")
    else:
        CONSOLE.print("does not reproduce, though no difference of the environment is known")


VERB = Verb(
    name="verify",
    summary="train a recorded cell again and say whether it reproduces, or by how much",
    about=(
        "Trains and scores a recorded cell once more, in a temporary folder, and compares it with "
        "the record: every step, the weights where they were kept, scores and items. Names what "
        "differs in versions, processor and threads. Exit status 1 where it does not reproduce bit "
        "for bit."
    ),
    words=CELL,
    examples=(
        "ablate verify 3f2a results/mine",
        "ablate verify results/mine/cells/3f2a",
        "ablate verify 3f2a    # of results/default",
    ),
    run=_run,
)
