"""The grid: part-wise composition against Hydra's own, studies, factors, and every refusal."""

import random
import re
import time

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from ablate.config import grid
from ablate.config.compose import expand, explained, level_of, task_overrides
from ablate.config.composer import CELL_KEYS, Composer, config_loader
from ablate.config.factors import products
from ablate.config.grid import cells
from ablate.config.overrides import normal, one_line, parse, spell
from ablate.errors import UserError
from ablate.paths import conf_dir

GROUPS = ("masking", "adapter", "dataset", "model", "train", "evaluate")
# Values of every kind that Hydra's grammar has, on plain keys, in groups and in free tables.
VALUES = [
    "plw=0.1", "plw=1", "plw=1e-3", "rank=2", "seed=7", "sham=b", "loss.normaliser=tokens",
    "loss={scope: example}", "++loss.label_smoothing=0.1", "train.lr=3e-4",
    "train.betas=[0.8,0.95]", "train.max_steps=null", "train.boundary='segment'", "~train.clip",
    "dataset.splits.train=[0.0,0.5]", "dataset.columns.output=answer", "dataset.max_rows=100",
    "dataset={turns: last, max_rows: 3}", "execution.device=cpu", "evaluate.limit=10",
    "evaluate.heldout=[]", "placement.modules=[q_proj,v_proj]",
    "+adapter.options.extra={a: [1, x]}",
    "train.max_steps=${rank}", "model.revision=a-b_c/d.1",
]  # fmt: skip
TIMES_ALLOWED = 2  # a machine that is busy with other work


@pytest.fixture(scope="module")
def loader():
    return config_loader()


def composed_by_hydra(loader, lines):
    """The cell as Hydra composes it, with the names of levels, which are those of the files."""
    composed = loader.load_configuration(
        "config", ["hydra/launcher=basic", "hydra/sweeper=basic", *map(normal, lines)], RunMode.RUN
    )
    choices = dict(composed.hydra.runtime.choices)
    keys = [key for key in composed if key in CELL_KEYS]
    tree = OmegaConf.to_container(OmegaConf.masked_copy(composed, keys), resolve=True)
    for group in GROUPS:
        tree[group]["name"] = choices[group]
    return tree


def random_lines(loader, draw):
    """Some groups at random options, then some values at most one of which sets a key."""
    lines = []
    for group in draw.sample(GROUPS, draw.randrange(len(GROUPS) + 1)):
        lines.append(f"{group}={draw.choice(loader.get_group_options(group))}")
    lines += draw.sample(VALUES, draw.randrange(6))
    return lines


def check_random_cells(loader, number, seed):
    draw, composer = random.Random(seed), Composer(loader)
    for _ in range(number):
        lines = random_lines(loader, draw)
        parts = composer.cell(lines)
        assert {k: p.value for k, p in parts.items()} == composed_by_hydra(loader, lines), lines


def test_parts_equal_full_composition(loader):
    check_random_cells(loader, 25, seed=1)


@pytest.mark.slow
def test_parts_equal_full_composition_on_200_cells(loader):
    check_random_cells(loader, 200, seed=2)


def test_ten_thousand_cells_take_seconds(loader):
    overrides = [
        "seed=range(0,50)", "plw=0,0.01,0.1,0.5,1", "masking=instruction,none,special,boilerplate",
        "dataset=micro,micro_short", "adapter=lora,full", "rank=2,4,8", "train.lr=1e-3",
    ]  # fmt: skip
    start = time.process_time()
    found = expand(overrides, loader=loader)
    cells = list(grid.cells(found))
    assert time.process_time() - start < 3 * TIMES_ALLOWED
    assert len(cells) == 50 * 5 * 4 * 2 * 2 * 3
    assert len({repr(cell.cell) for cell in cells}) == len(cells)
    assert not [cell.error for cell in cells if cell.error]


def test_cells_are_what_building_each_tree_gives(loader):
    from ablate.config.build import build

    found = expand(
        ["masking=none,special", "plw=0,1,7", "+adapter.options.z=1,2", "seed=0,1"], loader=loader
    )
    for point, cell in zip(found.points, grid.cells(found), strict=True):
        if point.tree["plw"] == 7:
            assert cell.cell is None
            assert cell.error == "plw=7.0: must be in [0, 1]"
        else:
            assert cell.cell == build(point.tree)
            assert cell.levels == {
                "masking": cell.cell.masking.name,
                "plw": cell.cell.plw,
                "adapter.options.z": cell.cell.adapter.options["z"],
                "seed": cell.cell.seed,
            }


def test_a_truth_value_is_not_the_number_one(loader):
    one, true = grid.cells(expand(["rank=1,true"], loader=loader))
    assert one.cell.rank == 1
    assert true.error == "rank=true: must be a whole number"


# -- the user's own levels ----------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """Own levels: one that inherits, one that writes elsewhere, one of an own group."""
    files = {
        "masking/mine.yaml": "defaults: [none]\nweights: {input: 0}\n",
        "adapter/lora_qv.yaml": "defaults: [lora]\ntargets: [q_proj, v_proj]\n",
        "train/loud.yaml": "# @package _global_\ntrain: {lr: 0.5}\nrank: 3\n",
        "recipe/big.yaml": "# @package _global_\nplw: 0.3\ndataset: {max_rows: 9}\n",
        "dataset/mine.yaml": "source: local\npath: x\nmax_rows: ${rank}\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return config_loader([tmp_path])


@pytest.mark.parametrize(
    "lines",
    [
        ["masking=mine", "plw=0.1"],
        ["adapter=lora_qv", "rank=2"],
        ["train=loud"],
        ["train=loud", "rank=4", "masking=mine"],
        ["+recipe=big", "seed=1"],
        ["dataset=mine", "rank=5"],
    ],
)
def test_own_levels_compose_as_in_hydra(own, lines):
    parts = Composer(own).cell(lines)
    assert {k: p.value for k, p in parts.items()} == composed_by_hydra(own, lines)


def test_own_level_varies_in_a_grid(own):
    found = expand(["train=loud,micro", "masking=mine,none"], loader=own)
    assert [point.levels for point in found.points] == [
        {"train": train, "masking": masking}
        for train in ("loud", "micro")
        for masking in ("mine", "none")
    ]
    assert [point.tree["rank"] for point in found.points] == [3, 3, 8, 8]


def test_a_request_does_not_change_what_later_ones_share():
    """The shipped settings are composed once in a process, whatever is asked for in between."""

    def asked(*lines):
        found = expand(lines)
        return [point.tree for point in found.points], found.settings, found.study

    before = asked("rank=3")
    changed = asked("out=elsewhere", "report=false", "rank=3")
    assert (changed[1]["out"], changed[1]["report"]) == ("elsewhere", False)
    assert asked("study=plw", "scale=micro", "masking=none")[2]["name"] == "plw"
    assert asked("train.lr=1e-3", "adapter=mora")[0] != before[0]
    assert asked("rank=3") == before


def test_own_levels_are_read_anew(tmp_path):
    """A user's file may change between two requests of one process, in a notebook, say."""
    (tmp_path / "masking").mkdir()
    for weight in (0.25, 0.5):
        (tmp_path / "masking" / "own.yaml").write_text(f"weights: {{input: {weight}}}\n")
        (point,) = expand(["masking=own"], loader=config_loader([tmp_path])).points
        assert point.tree["masking"]["weights"]["input"] == weight


def test_level_is_named_after_its_file(tmp_path):
    (tmp_path / "masking").mkdir()
    (tmp_path / "masking" / "copy.yaml").write_text("name: none\nweights: {}\n")
    with pytest.raises(UserError, match=r"masking=copy: its file says name: none"):
        expand(["masking=copy"], loader=config_loader([tmp_path]))


def test_missing_config_dir():
    with pytest.raises(UserError, match="no such folder"):
        config_loader(["/no/such/folder"])


def test_a_level_called_as_a_shipped_one_is_refused(tmp_path):
    """Hydra would take the shipped level without a word."""
    (tmp_path / "masking").mkdir()
    (tmp_path / "masking" / "none.yaml").write_text("weights: {}\n")
    with pytest.raises(UserError, match=r"masking/none.yaml is the name of a shipped level"):
        config_loader([tmp_path])
    config_loader([conf_dir()])  # the shipped folder itself


def test_local_level_may_be_given_a_name(loader):
    found = expand(
        ["dataset=local", "dataset.path=a.csv", "dataset.name=dolly,other"], loader=loader
    )
    assert [point.tree["dataset"]["name"] for point in found.points] == ["dolly", "other"]
    assert [point.levels for point in found.points] == [{"dataset": "dolly"}, {"dataset": "other"}]


# -- factors ------------------------------------------------------------------------------------


def test_no_override_is_one_cell(loader):
    found = expand([], loader=loader)
    (point,) = found.points
    assert (point.levels, point.overrides, found.factors) == ({}, (), ())
    assert point.tree["masking"]["name"] == "instruction"
    assert not {"hydra", "study", "out", "scale", "bundle", "retry_failed"} & set(point.tree)
    assert set(point.tree) == set(CELL_KEYS)
    assert found.settings["out"] == "results/default"
    assert found.study["name"] == "none"


def test_sweeps_of_every_kind(loader):
    found = expand(
        ["seed=range(0,3)", "plw=choice(0,0.5)", "masking=glob(non*)", "sham=a,b"], loader=loader
    )
    assert len(found.points) == 3 * 2 * 1 * 2
    assert found.factors == ("seed", "plw", "sham")
    assert [p.levels["seed"] for p in found.points] == [0] * 4 + [1] * 4 + [2] * 4
    assert found.points[1].overrides == ("seed=0", "plw=0", "masking=none", "sham=b")


def test_equal_cells_are_kept_once(loader):
    found = expand(["seed=0,1,0", "plw=0,0.0,0.5", "masking=instruction"], loader=loader)
    assert [(p.levels["seed"], p.levels["plw"]) for p in found.points] == [
        (0, 0), (0, 0.5), (1, 0), (1, 0.5),
    ]  # fmt: skip


def test_hydras_own_overrides_stay_outside():
    assert task_overrides(
        ["hydra/launcher=basic", "hydra.launcher.n_jobs=3", "+study=plw", "plw=0", "+scale=smoke"]
    ) == ["study=plw", "plw=0", "scale=smoke"]


def test_what_a_launcher_passes_on_is_added_by_two_signs():
    """Hydra's own way to add a key; without it the message says so, and `++` is taken."""
    asked = "hydra.launcher.blocks={partition:main}"
    refused = r"Could not override 'hydra\.launcher\.blocks'.*\+\+hydra\.launcher\.blocks="
    with pytest.raises(UserError, match=refused):
        expand(["hydra/launcher=parsl", asked])
    assert expand(["hydra/launcher=parsl", f"++{asked}"])


def test_plus_study_is_study(loader):
    one, two = (expand([f"{plus}study=plw", "scale=paper"], loader=loader) for plus in ("", "+"))
    assert [(p.levels, p.overrides, p.tree) for p in one.points] == [
        (p.levels, p.overrides, p.tree) for p in two.points
    ]
    assert (one.factors, one.study, one.settings) == (two.factors, two.study, two.settings)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([], ["seed=0 plw=0.1 masking=none", "seed=0 plw=0.1 masking=special", "seed=0 rank=2"]),
        (
            ["masking=placebo"],
            ["seed=0 plw=0.1 masking=placebo", "seed=0 rank=2 masking=placebo"],
        ),
        (
            ["seed=1,2", "plw=0.5"],
            [
                "masking=none seed=1 plw=0.5",
                "masking=none seed=2 plw=0.5",
                "masking=special seed=1 plw=0.5",
                "masking=special seed=2 plw=0.5",
                "rank=2 seed=1 plw=0.5",
                "rank=2 seed=2 plw=0.5",
            ],
        ),
        (
            ["+sham=b", "masking=none"],
            ["seed=0 plw=0.1 +sham=b masking=none", "seed=0 rank=2 +sham=b masking=none"],
        ),
    ],
)  # fmt: skip
def test_command_line_replaces_the_studys_factors(loader, asked, expected):
    from itertools import product

    from ablate.config.overrides import key_of, levels

    study = {
        "name": "s",
        "scales": {
            "micro": {
                "set": {"seed": 0},
                "grids": [{"plw": [0.1], "masking": ["none", "special"]}, {"rank": [2]}],
            }
        },
    }
    wanted = {key_of(line): levels(line, loader) for line in asked}
    found = [" ".join(c) for f in products(study, "micro", wanted) for c in product(*f.values())]
    assert found == expected


def test_study_that_is_written_wrongly():
    with pytest.raises(UserError, match=r"study s: scales.x=grid: not one of grids, set"):
        products({"name": "s", "scales": {"x": {"grid": []}}}, "x", {})
    with pytest.raises(UserError, match=r"study s: plw has no level"):
        products({"name": "s", "scales": {"x": {"grids": [{"plw": []}]}}}, "x", {})


def test_level_of():
    tree = {"masking": {"name": "none"}, "plw": 0.1, "train": {"betas": [0.9, 0.99]}}
    assert level_of(tree, "masking") == "none"
    assert level_of(tree, "train.betas[1]") == 0.99
    assert level_of(tree, "train.clip") is None
    assert level_of(tree, "train.betas[7]") is None


# -- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -3, 0.1, 1e-5, 2.236e-3, "none", "a b", "it's", "1e-3", "null",
        "True", "a,b", "[x]", "C:\\x", "end\\", "", "ü", "x=y", "nan", [1, "a", [None]],
        {"a": [1.5, "b c"]}, "tatsu-lab/alpaca", "12abc", "\\'", "$x",
    ],
)  # fmt: skip
def test_a_spelled_value_is_parsed_back(value):
    found = parse(f"key={spell(value)}").value()
    assert found == value
    assert type(found) is type(value)


def test_references_inside_a_cell_are_filled_in(loader):
    (point,) = expand(["rank=4", "train.max_steps=${rank}"], loader=loader).points
    assert point.tree["train"]["max_steps"] == 4


# -- refusals: one line, which names the setting and the nearest valid name ----------------------

REFUSED = {
    "maskng=none": r"maskng=none: no such setting. Did you mean 'masking'\?",
    "masking=non": r"masking=non: not one of boilerplate, .* Did you mean 'none'\?",
    "masking=none,instr": r"masking=instr: not one of .*",
    "masking=null": r"masking=null: not one of .*",
    "masking=[none,special]": r"masking=.*: not one of .*",
    "+masking=[null]": r"masking=\[None\]: not one of .*",
    "+train=[[]]": r"train=\[\[\]\]: not one of .*",
    "+adapter=[lora]": r"adapter=\['lora'\]: not one of .* Did you mean 'lora'\?",
    "train.lrr=3": r"train.lrr=3: no such setting. Did you mean 'train.lr'\?",
    "train.lr.x=3": r"train.lr.x=3: .*",
    "adapter.options.foo=3": r"adapter.options.foo=3: no such setting.*",
    "foo": r"foo: not an override; write key=value",
    "=3": r"=3: not an override; write key=value",
    "plw=[": r"plw=\[: not an override; write key=value",
    "study=qick": r"study=qick: not one of .* Did you mean 'quick'\?",
    "scale=huge": r"scale=huge: not one of micro\.",
    "out=a,b": r"out=a,b: must be one value.*",
    "study=plw,quick": r"study=plw,quick: must be one value.*",
    "ot=x": r"ot=x: no such setting. Did you mean 'out'\?",
    "train.eps=${oc.env:HOME}": r"train: \$\{oc.env:...\} is refused.*",
    "train.eps=${now:%Y}": r"train: \$\{now:...\} is refused.*",
    "sham=${hydra:job.num}": r"sham: \$\{hydra:...\} is refused.*",
    "sham=${hydra.job.num}": r"sham: \$\{hydra:...\} is refused.*",
    "sham=${nowhere}": r".*nowhere.*",
    "plw=interval(0,1)": r"plw=interval\(0,1\): levels must be listed.*",
    "masking=glob(x*)": r"masking=glob\(x\*\): no level matches",
    "+masking=none": r"Multiple values for masking.*",
    "+plw=0.1": r"\+plw=0.1: Could not append to config. .*",
    "dataset@foo=micro": r"Could not override 'dataset@foo'.*",
    "~train.nothing": r"~train.nothing: .*does not exist.*",
}


@pytest.mark.parametrize("line", REFUSED)
def test_wrong_request_is_one_line(loader, line):
    with pytest.raises(UserError) as caught:
        expand(["seed=0,1", line], loader=loader)
    assert "\n" not in str(caught.value)
    assert re.fullmatch(REFUSED[line], str(caught.value)), str(caught.value)


ILLEGAL = {
    "~plw": "plw: is needed; give it as plw=VALUE",
    "+masking.special=0": "masking.special: no such setting. masking has name, weights, turns, ",
    "+foo=1": "foo: no such setting.",
    "plw=": "plw=: must be a number",
    "plw=-1": "plw=-1.0: must be in [0, 1]",
    "dataset=local": "dataset.path: is needed; give it as dataset.path=VALUE",
    "train.betas=3": "train.betas=3: must be a list",
    "+adapter.colour=red": "adapter.colour: no such setting.",
}


@pytest.mark.parametrize("line", ILLEGAL)
def test_cell_that_cannot_be_built_says_why(loader, line):
    for cell in grid.cells(expand([line, "seed=0,1"], loader=loader)):
        assert cell.cell is None
        assert cell.error is not None
        assert cell.error.startswith(ILLEGAL[line])


def test_what_hydra_refuses_is_explained():
    refusal = ValueError("Could not override 'maskng'")
    assert "Did you mean 'masking'?" in str(explained(refusal, ["-m", "maskng=none"]))
    assert explained(refusal, ["-m", "masking=none"]) is refusal


def test_one_line_finds_the_cause():
    outer = ValueError("")
    outer.__cause__ = ValueError("\n  the reason\nand more")
    assert one_line(outer) == "the reason"
    assert one_line(KeyError()) == "KeyError"


def test_equal_parts_of_a_grid_are_one_object(loader):
    """Design and plan look up by part what they computed: a copy a level would repeat all of it."""
    found = list(cells(expand(["seed=range(0,9)", "plw=0,0.5", "rank=1,2,4"], loader=loader)))
    assert len(found) == 54
    for name in ("masking", "adapter", "dataset", "model", "evaluate", "execution"):
        assert len({id(getattr(entry.cell, name)) for entry in found}) == 1, name


def test_a_grid_of_a_million_cells_is_counted_first(loader):
    lines = ["seed=range(0,1000)", "rank=range(1,101)", "plw=0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,1"]
    with pytest.raises(UserError, match=r"^1,000,000 cells: .* --all"):
        expand(lines, loader=loader, most=100_000)
    assert len(expand(["seed=0,1"], loader=loader, most=2).points) == 2
