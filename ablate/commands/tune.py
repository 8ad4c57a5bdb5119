"""`ablate tune`: chooses learning rates on the validation split."""

import argparse
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.commands.sweep import retried, sweep
from ablate.commands.verb import CONFIG_DIR, OVERRIDES, RETRY_FAILED, Flag, Verb, folders
from ablate.paths import check_file, check_folder, conf_dir, in_checkout
from ablate.terminal import CONSOLE

if TYPE_CHECKING:
    import pandas as pd
    from hydra.core.config_loader import ConfigLoader
    from rich.console import Console

    from ablate.commands.tune_grids import Try
    from ablate.experiment.tuned_table import Arm, Tuned

ROUNDS = 5  # how often a range whose best rate is its last one is widened
OUT = "results/tuning"


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    from ablate.config.composer import config_loader

    words = retried(rest, given)
    given.retry_failed = False  # the words say it, where it is wanted
    return tune(
        words,
        sweep=functools.partial(sweep, given=given),
        console=CONSOLE,
        save=given.save,
        loader=config_loader(folders(given)),
    )


def tune(
    overrides: list[str],
    *,
    sweep: Callable[[list[str]], int],
    console: "Console",
    save: bool = False,
    loader: "ConfigLoader | None" = None,
) -> int:
    """Return the exit status of a tuning study, whose table is OUT/tuned.csv and is printed.

    An optimum at the edge of the rates tried widens the range there, up to `ROUNDS` times.

    Args:
        overrides: in Hydra's grammar; the study is `tuning` unless they name one.
        sweep: carries out a grid and returns its exit status.
        console: where the table is printed.
        save: whether its rows go into the table that `train.lr=tuned` reads, but for optima that
            are still at an edge.
        loader: Hydra's, which knows the user's folders of levels.
    """
    from ablate.commands import tune_grids as grids
    from ablate.config.compose import command
    from ablate.config.overrides import key_of
    from ablate.experiment.tuned import OWN
    from ablate.experiment.tuned_table import put, read

    named = {key_of(word) for word in overrides}
    settings = command([word for word in overrides if key_of(word) in ("out", "rates")])
    out = Path(settings["out"] if "out" in named else OUT)
    own = Path(settings["rates"] or OWN)
    if os.path.lexists(own):
        check_file("rates", own)
    asked = [
        *["study=tuning"] * ("study" not in named), *[f"out={OUT}"] * ("out" not in named),
        *(word for word in overrides if key_of(word) != "rates"),
    ]  # fmt: skip
    requests = grids.first(asked, loader)
    tries = [each for words in requests for each in grids.tries(words, loader)]
    grids.check_alike(tries)
    saved = sorted({_table(each.arm, own) for each in tries}) if save else []
    for table in saved:
        check_folder("--save", table.parent)
    # A file that is no table would be refused at the end, when all is trained.
    read(table for table in (*saved, out / "tuned.csv") if table.is_file())
    # One report at the end, not one a round: it takes longer than a few of the runs.
    first, once = requests[0], [] if "report" in named else ["report=false"]

    def trained(requests: list[list[str]]) -> int:
        return max(sweep([*words, *once]) for words in requests)

    status = trained(requests)
    for _ in range(ROUNDS):
        if status == 2:
            return status
        requests = grids.wider(choose(_results(out), tries), tries, first)
        if not requests:
            break
        arms = {each.arm for each in tries}
        more = [each for words in requests for each in grids.tries(words, loader)]
        tries += [each for each in more if each.arm in arms]
        grids.check_alike(tries)
        status = max(status, trained(requests))
    if status == 2:
        return status
    if once:
        # What failed has had its further attempt: here it would fail once more.
        status = max(status, sweep([w for w in first if key_of(w) != "retry_failed"]))
    rows = choose(_results(out), tries)
    put(rows, out / "tuned.csv")
    _print(rows, console)
    found = [row for row in rows if not row.edge]
    if save:
        _save(found, own, console)
    elif any(_table(row.arm, own) == own for row in found):
        console.print(f"for train.lr=tuned: --save, or rates={out / 'tuned.csv'}", soft_wrap=True)
    return status if len(found) == len(rows) else 1


def _results(out: Path) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_parquet(out / "results.parquet")


def choose(results: "pd.DataFrame", tries: "Iterable[Try]") -> "list[Tuned]":
    """Return the best learning rate of each arm.

    Its loss is the mean over base models, and `edge` "low" or "high" where the best rate is the
    last one tried on that side, so that the true optimum may lie beyond, or "failed". A rate at
    which any base model failed is never chosen.

    Args:
        results: the results table of a study that was scored on the validation split.
        tries: the runs that count, and what they try.
    """
    from ablate.experiment.tuned_table import Tuned
    from analysis.table.validation_losses import validation_losses

    losses = validation_losses(results).groupby("train_key")["loss"].mean()
    arms: dict[Arm, dict[float, dict[str, float]]] = {}
    for each in tries:
        loss = float(losses.get(each.train_key, math.nan))
        arms.setdefault(each.arm, {}).setdefault(each.lr, {})[each.train_key] = loss
    return [Tuned(**arm._asdict(), **_best(arms[arm])) for arm in sorted(arms)]


def _best(losses: Mapping[float, Mapping[str, float]]) -> dict[str, Any]:
    # A mean over models that leaves the failed ones out would reward failing.
    means = {lr: sum(runs.values()) / len(runs) for lr, runs in losses.items()}
    known = [(loss, lr) for lr, loss in means.items() if not math.isnan(loss)]
    if not known:
        return {"lr": math.nan, "loss": math.nan, "tried": len(means), "edge": "failed"}
    loss, lr = min(known)
    edge = {min(means): "low", max(means): "high"}.get(lr, "")
    return {"lr": lr, "loss": loss, "tried": len(means), "edge": edge}


def _print(rows: "list[Tuned]", console: "Console") -> None:
    import pandas as pd

    table = pd.DataFrame(map(asdict, rows))
    alike = [name for name in ("model_content", "dataset_content") if table[name].nunique() == 1]
    console.print(table.drop(columns=alike).to_string(index=False), highlight=False)
    for row in rows:
        if row.edge:
            fault = (
                "failed at every rate tried"
                if row.edge == "failed"
                else f"best at lr={row.lr}, the end of what was tried; try rates beyond it: "
                "train.lr=..."
            )
            console.print(
                f"[red]not tuned[/red]: {row.adapter} rank {row.rank} on {row.dataset}: {fault}",
                soft_wrap=True,
            )


def _table(arm: "Arm", own: Path) -> Path:
    """Return the table for an arm: in a checkout the micro world's goes with the shipped ones."""
    of_micro = not (arm.model_content or arm.dataset_content)
    return conf_dir() / "tuned" / "micro.csv" if of_micro and in_checkout() else own


def _save(rows: "Iterable[Tuned]", own: Path, console: "Console") -> None:
    from ablate.experiment.tuned_table import put

    tables: dict[Path, list[Tuned]] = {}
    for row in rows:
        tables.setdefault(_table(row.arm, own), []).append(row)
    for path, some in tables.items():
        put(some, path)
        console.print(f"saved for train.lr=tuned: {path}", soft_wrap=True)


VERB = Verb(
    name="tune",
    summary="choose learning rates on the validation split",
    about=(
        "Carries out a study that varies the learning rate, with a seed that no report uses, "
        "and writes the rate with the lowest validation loss of every adapter, rank and data "
        "set to OUT/tuned.csv. Own data and models start from rates around the default of "
        "each adapter. A range whose best rate is its last one is widened."
    ),
    words=OVERRIDES,
    options=(
        CONFIG_DIR,
        RETRY_FAILED,
        Flag("--save", "put the rates where train.lr=tuned finds them: tuned.csv, or rates=FILE"),
    ),
    examples=(
        "ablate tune adapter=lora rank=8",
        "ablate tune study=adapter_screen scale=tuning --save",
        "ablate tune dataset=local dataset.path=rows.jsonl adapter=lora,full --save",
    ),
    run=_run,
    settings=(
        "adapter", "rank", "init", "optimizer", "dataset", "dataset.path", "model", "model.path",
        "train", "train.lr", "study=tuning", "scale", "rates", f"out={OUT}",
    ),
)  # fmt: skip
