"""Tuned learning rates: the lookup and its order, and the choice from a results table."""

import dataclasses
import io
import math
import os
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import ablate
from ablate import cli
from ablate.commands import tune as verb
from ablate.commands.tune import choose, tune
from ablate.commands.tune_grids import Try
from ablate.config import build
from ablate.config.composer import Composer, config_loader
from ablate.errors import UserError
from ablate.experiment.design import heads_of
from ablate.experiment.known import Assumed
from ablate.experiment.notes import notes
from ablate.experiment.request import plan_grid
from ablate.experiment.summary import summarise
from ablate.experiment.tuned import Rates
from ablate.experiment.tuned_table import Arm, Tuned, family, put
from ablate.paths import conf_dir
from analysis.report import overview

TABLE = """model,dataset,adapter,rank,lr,loss
micro,micro,full,8,1e-3,1.0
micro,micro,lora,2,2e-3,1.0
micro,micro,lora,16,3e-3,1.0
micro,micro_short,mora,8,4e-3,1.0
micro,micro,mora,8,5e-3,1.0
micro_1,micro,full,8,6e-3,1.0
"""


@pytest.fixture(scope="module")
def cell():
    parts = Composer(config_loader()).cell([])
    return build.build({name: part.value for name, part in parts.items()})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "micro.csv").write_text(TABLE)
    return tmp_path


def tuned_lr(cell, folder=None):
    row = Rates(folder=folder).row(cell)
    return row.lr if row else None


def changed(cell, model="micro_0", dataset="micro", adapter="lora", rank=8):
    return dataclasses.replace(
        cell,
        model=dataclasses.replace(cell.model, name=model),
        dataset=dataclasses.replace(cell.dataset, name=dataset),
        adapter=dataclasses.replace(cell.adapter, name=adapter, kind=adapter.split("_")[0]),
        rank=rank,
    )


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ({"adapter": "full"}, 1e-3),
        ({"adapter": "full", "rank": 64}, 1e-3),
        ({"adapter": "full", "model": "micro_2"}, 1e-3),
        ({"adapter": "full", "model": "micro_1"}, 6e-3),  # its own row before its family's
        ({"rank": 2}, 2e-3),
        ({"rank": 4}, 2e-3),  # log2: 2 is one step away, 16 two
        ({"rank": 8}, 3e-3),
        ({"rank": 64}, 3e-3),
        ({"adapter": "mora", "dataset": "micro_short"}, 4e-3),
        ({"adapter": "mora_rotation", "dataset": "micro_short"}, 4e-3),
        ({"adapter": "mora", "dataset": "micro_short_but_odd"}, 4e-3),
        ({"adapter": "mora_rotation", "dataset": "micro_designed"}, 5e-3),
    ],
)
def test_lookup(cell, folder, levels, expected):
    assert tuned_lr(changed(cell, **levels), folder) == expected


@pytest.mark.parametrize(
    "levels", [{"adapter": "dora"}, {"dataset": "local"}, {"model": "llama_2_7b"}]
)
def test_what_was_not_tuned_has_no_row(cell, folder, levels):
    assert tuned_lr(changed(cell, **levels), folder) is None


@pytest.mark.parametrize(
    ("model", "adapter", "rate"),
    [  # by hand from the published rule: 5e-5 (2000 / width)^p, ten times that for an adapter
        ("llama_3_1_8b", "full", 2.9e-5),
        ("llama_3_1_8b", "lora", 2.9e-4),
        ("llama_3_2_1b", "mora", 4.9e-4),
        ("qwen_3_8b", "lora", 4.7e-4),
        ("qwen_2_5_0_5b", "full", 5.3e-5),
    ],
)
def test_what_was_not_tuned_has_a_default_that_says_so(model, adapter, rate, tmp_path):
    request = plan_grid(
        [f"model={model}", f"adapter={adapter}", f"out={tmp_path}"], known=Assumed()
    )
    named = request.design.cells[-1]
    assert named.cell.train.lr == rate
    assert named.cell.train.untuned
    assert heads_of(request.design)[named.key]["untuned"] is True
    given = plan_grid(
        [f"model={model}", f"adapter={adapter}", f"train.lr={rate}", f"out={tmp_path}"],
        known=Assumed(),
    ).design.cells[-1]
    assert not given.cell.train.untuned
    assert given.key == named.key  # a fact about the rate, no other training


def test_a_tuned_rate_is_not_called_untuned(tmp_path):
    named = plan_grid([f"out={tmp_path}"]).design.cells[-1]
    assert named.cell.train.lr == tuned_lr(named.cell)
    assert not named.cell.train.untuned


@pytest.mark.parametrize(
    ("adapter", "lr", "marked"),
    [  # the defaults at this width: 2.9e-5 in full, 2.9e-4 of an adapter; 9e-5 is between them
        ("lora", "2e-5", True),  # train=alpaca, a recipe of full tuning
        ("mora", "9e-5", True),
        ("lora", "9.5e-5", False),
        ("lora", "2e-4", False),
        ("full", "2e-5", False),
        ("lora", "tuned", False),  # a default of its own
    ],
)
def test_a_rate_of_full_tuning_on_an_adapter_is_marked(adapter, lr, marked, tmp_path):
    words = ["model=llama_2_7b", f"adapter={adapter}", "dataset=alpaca", "train=alpaca",
             f"train.lr={lr}", f"out={tmp_path}"]  # fmt: skip
    request = plan_grid(words, known=Assumed())
    base, named = request.design.cells
    assert (base.cell.train.full_rate, named.cell.train.full_rate) == (False, marked)
    assert heads_of(request.design)[named.key]["full_rate"] is marked
    said = [line for line in notes([named]) if "rate of full tuning on an adapter" in line]
    assert len(said) == marked
    assert [row["full_rate"] for row in summarise(request)["adapters"]] == [False, marked]


@pytest.mark.parametrize(
    ("optimizer", "marked"), [("adamw", True), ("adamw_8bit", True), ("lion", False)]
)
def test_rates_of_lion_are_not_held_against_those_of_adamw(optimizer, marked, tmp_path):
    words = ["model=llama_2_7b", "adapter=lora", "dataset=alpaca", "train=alpaca",
             "train.lr=2e-5", f"optimizer={optimizer}", f"out={tmp_path}"]  # fmt: skip
    _, named = plan_grid(words, known=Assumed()).design.cells
    assert named.cell.train.full_rate is marked


def test_the_report_marks_rates_of_full_tuning():
    cells = pd.DataFrame(
        {"train_key": ["a", "b"], "adapter": ["lora", "full"], "dataset": "mine", "rank": 8,
         "lr": [2e-5, 2e-5], "full_rate": [True, False]}
    )  # fmt: skip
    (sheet,) = overview._rates(cells, None)
    assert list(sheet.table.frame["full_rate"]) == [True, False]
    assert "marked full_rate" in sheet.table.note


def test_the_report_marks_what_nobody_tuned():
    cells = pd.DataFrame(
        {"train_key": ["a", "b"], "adapter": ["lora", "full"], "dataset": "mine", "rank": 8,
         "lr": [3e-4, 3e-5], "untuned": [True, False]}
    )  # fmt: skip
    (sheet,) = overview._rates(cells, None)
    assert list(sheet.table.frame["untuned"]) == [True, False]
    assert "marked untuned" in sheet.table.note
    (plain,) = overview._rates(cells.assign(untuned=False), None)
    assert "untuned" not in plain.table.frame


def test_another_method_is_not_tuned_by_a_shorter_name(cell, folder):
    cell = changed(cell, adapter="lora_xs")
    cell = dataclasses.replace(cell, adapter=dataclasses.replace(cell.adapter, kind="psoft"))
    assert tuned_lr(cell, folder) is None


def test_a_start_and_an_optimizer_have_rates_of_their_own(cell, folder):
    text = TABLE.replace(",loss\n", ",loss,init,optimizer\n")
    (folder / "micro.csv").write_text(text + "micro,micro,lora,2,8e-3,1.0,pissa,\n")
    pissa = dataclasses.replace(cell, init=dataclasses.replace(cell.init, name="pissa"))
    assert tuned_lr(changed(pissa, rank=2), folder) == 8e-3
    assert tuned_lr(changed(cell, rank=2), folder) == 2e-3
    olora = dataclasses.replace(cell, init=dataclasses.replace(cell.init, name="olora"))
    assert tuned_lr(changed(olora), folder) is None


def test_full_tuning_has_one_rate_whatever_the_rank(cell, tmp_path):
    """Two rates would make two runs of what is one."""
    rows = ("micro,micro,full,8,1e-3,0.7", "micro,micro,full,2,2e-3,0.8")
    (tmp_path / "micro.csv").write_text("\n".join([TABLE.splitlines()[0], *rows]))
    rates = {tuned_lr(changed(cell, adapter="full", rank=r), tmp_path) for r in (1, 2, 8, 64)}
    assert rates == {1e-3}


def test_no_table_at_all(cell, tmp_path):
    assert tuned_lr(cell, tmp_path) is None


COLUMNS = "needs the columns model, dataset, adapter, rank, lr"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,lr\nmicro,fast\n", COLUMNS),
        ("a,b\n", COLUMNS),
        (TABLE + "micro,micro,lora,x,y,", "line [0-9]+: rank=x, lr=y: rank and tried are whole"),
    ],
)
def test_broken_table(cell, tmp_path, text, said):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        tuned_lr(cell, tmp_path)


def test_a_changed_table_is_read_again(cell, folder):
    import os

    assert tuned_lr(changed(cell, rank=2), folder) == 2e-3
    (folder / "micro.csv").write_text(TABLE.replace("2e-3", "7e-3"))
    os.utime(folder / "micro.csv", (1, 1))
    assert tuned_lr(changed(cell, rank=2), folder) == 7e-3


# -- choosing -----------------------------------------------------------------------------------

RATES = (1e-3, 3e-3, 9e-3, 2.7e-2, 8.1e-2)


def results(loss, models=("micro_0", "micro_1"), adapters=("full", "lora"), failed=()):
    """Validation losses loss(adapter, model, lr), beside rows that must not matter."""
    rows = []
    for adapter in adapters:
        for model in models:
            for lr in RATES:
                run = {
                    "model": model, "dataset": "micro", "adapter": adapter, "rank": 8, "lr": lr,
                    "train_key": f"{adapter}{model}{lr}",
                }  # fmt: skip
                if (model, lr) in failed:
                    rows.append(run | dict.fromkeys(("task", "task_type", "metric")))
                    continue
                held = run | {"task": "heldout_validation", "task_type": "heldout"}
                rows.append(held | {"metric": "loss_completion", "value": loss(adapter, model, lr)})
                rows.append(held | {"metric": "loss_instruction", "value": lr})
                rows.append(
                    run | {"task": "facts", "task_type": "mc", "metric": "acc", "value": -lr}
                )
    base = {"model": "micro_0", "dataset": "micro", "adapter": "none", "rank": 8, "lr": 1e-3}
    rows.append(base | {"task": "heldout_validation", "task_type": "heldout", "value": 0.0,
                        "metric": "loss_completion", "train_key": "base"})  # fmt: skip
    return pd.DataFrame(rows)


def chosen(frame):
    """What is chosen if all runs of a table count."""
    runs = frame[frame["adapter"] != "none"].drop_duplicates("train_key")
    tries = [
        Try(Arm(family(r.model), r.dataset, r.adapter, "default", "adamw", r.rank, "", ""),
            r.lr, r.train_key, ())
        for r in runs.itertuples()
    ]  # fmt: skip
    return pd.DataFrame(choose(frame, tries))


def bowl(adapter, model, lr, best=9e-3):
    """A parabola in log lr whose two models disagree by a rate each, around `best`."""
    shift = {"micro_0": 1, "micro_1": -1}[model]
    return 1 + (math.log(lr / best, 3) - shift) ** 2 + (adapter == "lora")


def test_choose_takes_the_lowest_mean_over_models():
    table = chosen(results(bowl))
    assert table[["model", "dataset", "adapter", "rank", "lr", "edge"]].values.tolist() == [
        ["micro", "micro", "full", 8, 9e-3, ""],
        ["micro", "micro", "lora", 8, 9e-3, ""],
    ]
    assert table["loss"].tolist() == pytest.approx([2.0, 3.0])
    assert table["tried"].tolist() == [5, 5]


def test_choose_reports_an_edge():
    low = chosen(results(lambda a, m, lr: lr))
    high = chosen(results(lambda a, m, lr: -lr))
    assert set(low["edge"]) == {"low"}
    assert set(high["edge"]) == {"high"}


def test_a_rate_at_which_a_model_failed_is_not_chosen():
    table = chosen(results(bowl, failed=[("micro_1", 9e-3)]))
    assert set(table["lr"]) <= {3e-3, 2.7e-2}
    assert set(table["tried"]) == {5}


def test_all_rates_failed():
    frame = results(bowl)
    frame.loc[frame["adapter"] == "lora", "value"] = math.nan
    table = chosen(frame).set_index("adapter")
    assert table["edge"].to_dict() == {"full": "", "lora": "failed"}


def test_results_as_the_record_writes_them(tmp_path):
    """The table on disk has nullable strings; a missing task must not count as a match."""
    frame = results(bowl, failed=[("micro_0", 1e-3)])
    text = ["model", "dataset", "adapter", "task", "task_type", "metric"]
    frame[text] = frame[text].astype("string")
    frame.to_parquet(tmp_path / "r.parquet")
    assert chosen(pd.read_parquet(tmp_path / "r.parquet"))["lr"].tolist() == [9e-3, 9e-3]


def test_runs_that_were_not_asked_for_do_not_count():
    """Older runs of the folder may be of other data with the same name."""
    frame = results(bowl, models=("micro_0",), adapters=("lora",))
    arm = Arm("micro", "micro", "lora", "default", "adamw", 8, "", "")
    tries = [Try(arm, lr, f"loramicro_0{lr}", ()) for lr in RATES[:2]]
    (row,) = choose(frame, tries)
    assert (row.lr, row.tried, row.edge) == (3e-3, 2, "high")


# -- ablate tune --------------------------------------------------------------------------------

WORDS = ("model=micro_0,micro_1", "dataset=micro", "adapter=full,lora", "rank=8")


def run_tune(tmp_path, loss, *words, status=0, save=False, loader=None):
    """Tune with a sweep that trains nothing: runs have the loss(cell) of a made landscape."""
    asked, rows = [], []

    def sweep(overrides):
        asked.append(overrides)
        for named in plan_grid(overrides, loader=loader).design.cells:
            run = {"adapter": named.cell.adapter.name, "train_key": named.key}
            run |= {"lr": named.cell.train.lr, "value": loss(named.cell)}
            held = {"task": "heldout_validation", "task_type": "heldout"}
            rows.append(run | held | {"metric": "loss_completion"})
        pd.DataFrame(rows).to_parquet(tmp_path / "results.parquet")
        return status

    text = io.StringIO()
    console = Console(file=text, width=200)
    found = tune(
        [f"out={tmp_path}", *words], sweep=sweep, console=console, save=save, loader=loader
    )
    return found, asked, text.getvalue()


def valley(best):
    return lambda cell: abs(math.log2(cell.train.lr / best))


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """Where the tables of a checkout are."""
    monkeypatch.setattr(verb, "conf_dir", lambda: tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "conf" / "tuned"


@pytest.mark.parametrize("asked", [["--retry-failed"], ["retry_failed=true"]])
def test_what_failed_is_tried_again_once_and_not_for_the_report(tmp_path, conf, monkeypatch, asked):
    """A cell that always fails is tried by each sweep that is to retry it: by one alone."""
    retries, losses = [], valley(8e-3)

    def sweep(overrides, given):
        again = given.retry_failed or "retry_failed=true" in overrides
        retries.append(again)
        rows = [
            {"adapter": c.cell.adapter.name, "train_key": c.key, "lr": c.cell.train.lr,
             "value": losses(c.cell), "task": "heldout_validation", "task_type": "heldout",
             "metric": "loss_completion"} for c in plan_grid(overrides).design.cells
        ]  # fmt: skip
        pd.DataFrame(rows).to_parquet(tmp_path / "results.parquet")
        return 0

    monkeypatch.setattr(verb, "sweep", sweep)
    assert cli.main(["tune", f"out={tmp_path}", *WORDS, *asked]) == 0
    assert retries == [True, False]  # trained, then reported on


@pytest.mark.parametrize("place", ["rates", "out"])
def test_a_table_that_is_none_is_refused_before_anything_trains(tmp_path, conf, place):
    rows = '{"instruction": "Say 1", "output": "1"}\n'
    path = tmp_path / ("mine.jsonl" if place == "rates" else "out/tuned.csv")
    path.parent.mkdir(exist_ok=True)
    path.write_text(rows)
    trained = []
    base = Path(ablate.__file__).parent / "micro" / "checkpoints" / "micro_0"
    words = [f"out={tmp_path / 'out'}", "model=local", f"model.path={base}", "adapter=lora",
             *([f"rates={path}"] if place == "rates" else [])]  # fmt: skip
    with pytest.raises(UserError, match="needs the columns model, dataset"):
        tune(words, sweep=trained.append, console=Console(file=io.StringIO()), save=True)
    assert trained == []
    assert path.read_text() == rows


def test_a_table_is_replaced_as_a_whole(tmp_path, monkeypatch):
    """A process that is killed while it writes leaves the rates of other studies as they were."""
    path, row = tmp_path / "tuned.csv", Tuned("micro", "micro", "lora", 2, 0.01)
    put([row], path)
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        put([dataclasses.replace(row, rank=4)], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_tune_writes_the_table_and_saves_it(tmp_path, conf, cell):
    status, asked, text = run_tune(tmp_path, valley(8e-3), *WORDS, save=True)
    assert status == 0
    words = ["study=tuning", f"out={tmp_path}", *WORDS]
    assert asked == [[*words, "report=false"], words]  # trained, then reported on
    assert "0.008" in text
    assert len(pd.read_csv(tmp_path / "tuned.csv")) == 2
    assert tuned_lr(changed(cell, adapter="full"), conf) == 8e-3
    more = [word.replace("full,", "") for word in WORDS]
    run_tune(tmp_path, valley(16e-3), *more, save=True)
    assert tuned_lr(cell, conf) == 16e-3
    assert tuned_lr(changed(cell, adapter="full"), conf) == 8e-3
    assert not (tmp_path / "tuned.csv").read_text().count("content")  # as before


def test_without_a_checkout_the_micro_world_s_rates_go_into_the_own_table(
    tmp_path, conf, cell, monkeypatch
):
    monkeypatch.setattr(verb, "in_checkout", lambda: False)
    run_tune(tmp_path, valley(8e-3), *WORDS, "rates=mine.csv", save=True)
    assert not conf.exists()
    given = plan_grid(["rates=mine.csv", f"out={tmp_path}"])
    assert given.design.cells[-1].cell.train.lr == 8e-3 != tuned_lr(cell)
    assert given.own_rates == ("lora rank 8 on micro, micro: 0.008 (mine.csv)",)


def test_tune_does_not_save_an_edge(tmp_path, conf, monkeypatch):
    monkeypatch.setattr(verb, "ROUNDS", 1)
    status, _, text = run_tune(tmp_path, lambda cell: cell.train.lr, *WORDS, save=True)
    assert status == 1
    assert "the end of what was tried" in text
    assert not conf.exists()
    assert Rates(tmp_path / "tuned.csv").from_own() == []
    assert len(pd.read_csv(tmp_path / "tuned.csv")) == 2  # with the edge, which is no rate


def test_tune_widens_the_range_at_an_edge(tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "ROUNDS", 2)
    _, asked, _ = run_tune(tmp_path, lambda cell: cell.train.lr, *WORDS)
    assert len(asked) == 1 + verb.ROUNDS + 1
    assert ["report=false" in words for words in asked] == [True, True, True, False]
    words = ("model=micro_0,micro_1", "adapter=full,lora", "train.lr=0.0005", "init=default")
    for word in (*words, "optimizer=adamw", "rank=8"):
        assert word in asked[1]
    assert "train.lr=0.00025" in asked[2]


PRODUCTS = """\
name: products
scales:
  micro:
    set: {model: micro_0, dataset: micro, evaluate: validation, seed: 1000}
    grids:
    - {adapter: [full], embeddings: [trained], train.lr: [4e-3, 8e-3]}
    - {adapter: [relora], rank: [2, 8], train.lr: [4e-3, 8e-3, 1.6e-2]}
"""


def test_what_widens_a_range_is_the_arm_that_was_tried(tmp_path, monkeypatch):
    """Nothing of the study's other products, nor of the range that was widened before it."""
    monkeypatch.setattr(verb, "ROUNDS", 3)
    folder = tmp_path / "mine" / "study"
    folder.mkdir(parents=True)
    (folder / "products.yaml").write_text(PRODUCTS)
    (tmp_path / "out").mkdir()
    loader = config_loader([str(folder.parent)])
    best = {"full": 0.002, "relora": 0.256}  # one is widened twice, the other in every round

    def loss(cell):
        return valley(best.get(cell.adapter.name, 0.008))(cell)

    _, asked, _ = run_tune(tmp_path / "out", loss, "study=products", loader=loader)
    first, *rounds, last = asked
    assert first == [*last, "report=false"]
    cells = [
        named.cell
        for words in rounds
        for named in plan_grid(words, loader=loader).design.cells
        if not named.cell.is_base
    ]
    found = {(c.adapter.name, c.rank, c.embeddings, c.train.lr) for c in cells}
    relora = {("relora", r, "frozen", lr) for r in (2, 8) for lr in (0.032, 0.064, 0.128)}
    assert found == relora | {("full", 8, "trained", 0.002), ("full", 8, "trained", 0.001)}
    assert all(c.evaluate.heldout for c in cells)
    assert {c.seed for c in cells} == {1000}


@pytest.mark.parametrize("setting", ["embeddings=frozen,trained", "train.batch_size=8,16"])
def test_an_arm_that_is_tried_under_two_settings_is_refused(tmp_path, setting):
    name = setting.partition("=")[0]
    said = rf"{name}: .* of rank 8 on micro is tried at .* and at .*, and would get one rate"
    with pytest.raises(UserError, match=said):
        run_tune(tmp_path, valley(8e-3), *WORDS[1:], "model=micro_0", setting, "skip_illegal=true")
    assert not list(tmp_path.iterdir())


def test_tune_stops_where_the_sweep_was_refused(tmp_path):
    status, _, text = run_tune(tmp_path, valley(8e-3), *WORDS, status=2)
    assert (status, text) == (2, "")


def test_tune_without_validation_rows_is_refused_before_it_trains(tmp_path):
    with pytest.raises(UserError, match=r"evaluate=none: ablate tune .*evaluate=validation"):
        run_tune(tmp_path, valley(8e-3), *WORDS, "evaluate=none")
    assert not list(tmp_path.iterdir())


def test_putting_rows_into_a_table_leaves_the_others_as_they_are(tmp_path):
    shipped = (conf_dir() / "tuned" / "micro.csv").read_bytes()
    (tmp_path / "micro.csv").write_bytes(shipped)
    put([], tmp_path / "micro.csv")
    assert (tmp_path / "micro.csv").read_bytes() == shipped
    put([Tuned("micro", "micro", "zora", 4, 0.5)], tmp_path / "micro.csv")
    lines = (tmp_path / "micro.csv").read_text().splitlines()
    assert [n for n in lines if "zora" not in n] == shipped.decode().splitlines()
    assert "micro,micro,zora,4,0.5,,,default,adamw" in lines
