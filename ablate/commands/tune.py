"""`ablate tune`: chooses learning rates on the validation split."""

import argparse
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ablate.commands.sweep import sweep
from ablate.commands.verb import CONFIG_DIR, OVERRIDES, RETRY_FAILED, Flag, Verb
from ablate.errors import UserError
from ablate.experiment.tuned import AROUND, COLUMNS, family
from ablate.paths import check_folder, conf_dir
from ablate.terminal import CONSOLE

if TYPE_CHECKING:
    import pandas as pd

BY = ["model", "dataset", "adapter", *AROUND, "rank"]
STEP = 2.0  # factor by which a range whose best rate is its last one is widened
ROUNDS = 5  # how often it is
OUT = "results/tuning"


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    return tune(rest, sweep=functools.partial(sweep, given=given), console=CONSOLE, save=given.save)


def tune(
    overrides: list[str],
    *,
    sweep: Callable[[list[str]], int],
    console: Console,
    save: bool = False,
) -> int:
    """Return the exit status of a tuning study, whose table is OUT/tuned.csv and is printed.

    An optimum at the edge of the rates tried widens the range there, up to `ROUNDS` times.

    Args:
        overrides: in Hydra's grammar; the study is `tuning` unless they name one.
        sweep: carries out a grid and returns its exit status.
        console: where the table is printed.
        save: whether its rows go into conf/tuned/micro.csv, but for optima that are still at an
            edge.
    """
    import pandas as pd

    from ablate.config.compose import command
    from ablate.config.overrides import key_of

    named = {key_of(word) for word in overrides}
    asked = [
        *["study=tuning"] * ("study" not in named), *[f"out={OUT}"] * ("out" not in named),
        *overrides,
    ]  # fmt: skip
    out = Path(command([word for word in asked if key_of(word) in ("out", "scale")])["out"])
    if save:
        check_folder("--save", conf_dir() / "tuned")
    status = sweep(asked)
    for _ in range(ROUNDS):
        if status == 2:
            return status
        edges = choose(pd.read_parquet(out / "results.parquet"))
        edges = edges[edges["edge"].isin(["low", "high"])]
        if edges.empty:
            break
        for wider in _wider(edges, asked):
            status = sweep(wider)
    table = choose(pd.read_parquet(out / "results.parquet"))
    table.to_csv(out / "tuned.csv", index=False)
    console.print(table.to_string(index=False))
    found = table[table["edge"] == ""]
    if save and len(found):
        _save(found, conf_dir() / "tuned" / "micro.csv")
    _print_untuned(table[table["edge"] != ""], console)
    return status if len(found) == len(table) else 1


def _print_untuned(rows: "pd.DataFrame", console: Console) -> None:
    for row in rows.itertuples():
        fault = f"best at lr={row.lr}, the end of what was tried; try rates beyond it: train.lr=..."
        if row.edge == "failed":
            fault = "failed at every rate tried"
        console.print(
            f"[red]not tuned[/red]: {row.adapter} rank {row.rank} on {row.dataset}: {fault}"
        )


def choose(results: "pd.DataFrame") -> "pd.DataFrame":
    """Return the best learning rate of each model family, data set, adapter and rank.

    Columns model, dataset, adapter, rank, lr, the mean validation `loss` at it, how many rates were
    `tried`, and `edge`: "low" or "high" where the best rate is the last one tried on that side, so
    that the true optimum may lie beyond, or "failed". A rate at which any base model failed is
    never chosen.

    Args:
        results: the results table of a study that varies `lr`, scored on the validation split.

    Raises:
        UserError: the table has no validation loss on completions.
    """
    import pandas as pd

    from analysis.table.validation_losses import validation_losses

    losses = validation_losses(results)
    if losses["loss"].isna().all():
        raise UserError("no validation loss in these results; score them with evaluate=validation")
    losses["model"] = losses["model"].map(family)
    chosen = [
        {**dict(zip(BY, key, strict=True)), **_best(group)}
        for key, group in losses.groupby(BY, sort=True)
    ]
    return pd.DataFrame(chosen, columns=[*COLUMNS, "loss", "tried", *AROUND, "edge"])


def _best(group: "pd.DataFrame") -> dict[str, object]:
    # A mean over models that leaves the failed ones out would reward failing.
    means = group.groupby("lr")["loss"].agg(lambda losses: losses.mean(skipna=False))
    rates = [float(lr) for lr in means.index]
    by_rate = sorted(zip(rates, map(float, means), strict=True))
    known = [(loss, lr) for lr, loss in by_rate if not math.isnan(loss)]
    if not known:
        return {"lr": math.nan, "loss": math.nan, "tried": len(by_rate), "edge": "failed"}
    loss, lr = min(known)
    edge = {by_rate[0][0]: "low", by_rate[-1][0]: "high"}.get(lr, "")
    return {"lr": lr, "loss": loss, "tried": len(by_rate), "edge": edge}


def _wider(edges: "pd.DataFrame", asked: list[str]) -> Iterator[list[str]]:
    """Yield a request for each rate beyond the edges: its levels in place of the study's own."""
    from ablate.config.overrides import key_of

    replaced = ("adapter", "rank", "dataset", "train.lr", *AROUND)
    rest = [word for word in asked if key_of(word) not in replaced]
    by = ["dataset", "rank", "lr", "edge", *AROUND]
    for (dataset, rank, lr, edge, init, optimizer), own in edges.groupby(by, sort=False):
        beyond = float(str(lr)) * STEP if edge == "high" else float(str(lr)) / STEP
        yield [
            *rest,
            f"dataset={dataset}",
            f"adapter={','.join(sorted(set(own['adapter'])))}",
            f"rank={rank}",
            f"train.lr={beyond:.3g}",
            f"init={init}",
            f"optimizer={optimizer}",
        ]


def _save(table: "pd.DataFrame", path: Path) -> None:
    """Put the rows of `table` into the table at `path`, in place of older ones."""
    import pandas as pd

    old = pd.read_csv(path) if path.is_file() else table.iloc[:0]
    for name, usual in AROUND.items():
        old[name] = old[name].fillna(usual) if name in old else usual
    both = pd.concat([old, table]) if len(old) else table
    rows = both.drop_duplicates(BY, keep="last").sort_values(BY, kind="stable")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.drop(columns="edge", errors="ignore").to_csv(path, index=False)


VERB = Verb(
    name="tune",
    summary="choose learning rates on the validation split",
    about=(
        "Carries out a study that varies the learning rate, with a seed that no report uses, "
        "and writes the rate with the lowest validation loss of every adapter, rank and data "
        "set to OUT/tuned.csv. A range whose best rate is its last one is widened."
    ),
    words=OVERRIDES,
    options=(
        CONFIG_DIR,
        RETRY_FAILED,
        Flag("--save", "put the rates into conf/tuned/micro.csv, for train.lr=tuned"),
    ),
    examples=(
        "ablate tune adapter=lora rank=8",
        "ablate tune study=adapters scale=tuning --save",
        "ablate tune dataset=local dataset.path=rows.jsonl adapter=lora train.lr=1e-4,3e-4,1e-3",
    ),
    run=_run,
)
