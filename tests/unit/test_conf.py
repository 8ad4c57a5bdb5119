"""The configuration tree: every option builds, defaults stand once, studies are what they claim."""

import dataclasses
import itertools
import math

import pytest
import yaml

from ablate.config import build, grid, schema
from ablate.config.compose import expand
from ablate.config.composer import CELL_KEYS, Composer, config_loader
from ablate.experiment.tuned import Rates
from ablate.paths import conf_dir
from ablate.roles import MASKED_ROLES

GROUPS = (
    "masking", "adapter", "init", "optimizer", "placement", "regulariser", "dataset", "model",
    "train", "evaluate",
)  # fmt: skip
OPTIONS = [
    (group, path.stem) for group in GROUPS for path in sorted((conf_dir() / group).glob("*.yaml"))
]
STUDIES = [path.stem for path in sorted((conf_dir() / "study").glob("*.yaml"))]
SCALES = [
    (name, scale)
    for name in STUDIES
    for scale in yaml.safe_load((conf_dir() / "study" / f"{name}.yaml").read_text())["scales"]
]


@pytest.fixture(scope="module")
def loader():
    return config_loader()


@pytest.fixture(scope="module")
def composer(loader):
    return Composer(loader)


def study(loader, name, scale="micro", *more):
    found = expand([f"study={name}", f"scale={scale}", *more], loader=loader)
    cells = list(grid.cells(found))
    assert [cell.error for cell in cells if cell.error] == []
    return [cell.cell for cell in cells]


def tree_of(composer, lines):
    return {name: part.value for name, part in composer.cell(lines).items()}


# -- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=str)
def test_every_option_composes_and_builds(composer, group, option):
    path = [f"{group}.path=here"] if option in ("local", "hub") else []
    cell = build.build(tree_of(composer, [f"{group}={option}", *path]))
    assert getattr(cell, group).name == option


@pytest.mark.parametrize(("name", "scale"), SCALES, ids=str)
def test_every_study_builds(loader, name, scale):
    assert study(loader, name, scale)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_is(name):
    text = yaml.safe_load((conf_dir() / "study" / f"{name}.yaml").read_text())
    assert text["name"] == name
    assert {"name", "question", "figures", "scales"} <= set(text)
    assert set(text) <= {"name", "question", "figures", "scales", "report"}


def test_groups_are_those_of_the_tree(composer):
    assert set(composer.groups) == set(GROUPS)


# -- defaults -----------------------------------------------------------------------------------

TABLES = {
    "loss": schema.Loss, "masking": schema.Masking, "adapter": schema.Adapter,
    "init": schema.Init, "optimizer": schema.Optimizer, "placement": schema.Placement,
    "regulariser": schema.Regulariser,
    "dataset": schema.Dataset, "model": schema.Model, "train": schema.Train,
    "evaluate": schema.Evaluate, "execution": schema.Execution,
}  # fmt: skip


@pytest.mark.parametrize("key", TABLES)
def test_every_setting_can_be_overridden_and_its_default_is_the_types(key):
    """Hydra sets only what the tree has; a default that differs from the type's is two defaults."""
    root = yaml.safe_load((conf_dir() / "config.yaml").read_text())[key]
    for field in dataclasses.fields(TABLES[key]):
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            continue
        if field.name == "name":  # the level's file gives it
            continue
        assert field.name in root, f"{key}.{field.name}"
        found = root[field.name]
        assert build.plain(default) == (float(found) if isinstance(default, float) else found)
    assert set(root) <= {field.name for field in dataclasses.fields(TABLES[key])}


def test_plain_factors_have_the_types_defaults(composer):
    tree = tree_of(composer, [])
    assert set(tree) == set(CELL_KEYS)
    for field in dataclasses.fields(schema.Cell):
        if field.default is not dataclasses.MISSING:
            assert tree[field.name] == field.default


def test_hydra_leaves_no_litter(loader):
    hydra = yaml.safe_load((conf_dir() / "config.yaml").read_text())["hydra"]
    assert hydra["output_subdir"] is None
    assert hydra["run"]["dir"] == "."
    assert hydra["sweep"] == {"dir": "${out}", "subdir": "."}


# -- masking: the table of the literature -------------------------------------------------------

P = "plw"
MASKS = {  # special, boilerplate, system + instruction + input, completion
    "instruction": (0, 0, 0, 1),
    "none": (P, P, P, 1),
    "boilerplate": (0, 0, P, 1),
    "special": (0, P, P, 1),
    "im_released": (1, 1, 1, 1),
    "placebo": (P, P, P, 1),
    "last_turn": (0, 0, 0, 1),
    "no_thinking": (0, 0, 0, 1),
    "thinking_half": (0, 0, 0, 1),
    "no_tools_results": (P, P, P, 1),
    "stop_masked": (0, 0, 0, 1),
}
APART = {  # the details that a mode weighs apart from their roles
    "no_thinking": {"thinking": 0},
    "thinking_half": {"thinking": 0.5},
    "no_tools_results": {"tools": 0, "tool_result": 0},
    "stop_masked": {"stop": 0},
}


def test_masking_table(composer):
    assert {option for group, option in OPTIONS if group == "masking"} == set(MASKS)
    for name, (special, boilerplate, prompt, completion) in MASKS.items():
        masking = build.build(tree_of(composer, [f"masking={name}"])).masking
        expected = (special, boilerplate, prompt, prompt, prompt, completion)
        table = dict(zip(MASKED_ROLES, expected, strict=True))
        assert masking.weights == table | APART.get(name, {})
        assert masking.turns == ("last" if name == "last_turn" else "all")
        assert masking.permute == (name == "placebo")
        assert masking.first_header_only == (name == "im_released")


# -- the PLW paper ------------------------------------------------------------------------------


def on_wp_scale(plw):
    """w_p = PLW^0.30103, arXiv 2401.13586 section 4.3: the exponent that sends 0.1 to 0.5."""
    return plw ** math.log10(2)


def midpoint(low, high):
    return ((on_wp_scale(low) + on_wp_scale(high)) / 2) ** (1 / math.log10(2))


PLW_LEVELS = sorted(
    {0, 5e-4, 0.01, 0.05, 0.1, 0.5, 1}
    | {math.sqrt(5e-4 * 0.01), midpoint(0.01, 0.05), midpoint(0.1, 0.5)}
)


def test_plw_levels_follow_from_their_anchors(loader):
    for scale in ("paper", "micro"):
        levels = sorted({cell.plw for cell in study(loader, "plw", scale)})
        assert levels == pytest.approx(PLW_LEVELS, rel=3e-4)  # the paper prints four digits
    assert on_wp_scale(0.1) == pytest.approx(0.5)


def test_plw_paper_cells(loader):
    cells = study(loader, "plw", "paper")
    assert len(cells) == 60
    combinations = {(c.model.path, c.dataset.name, c.plw) for c in cells}
    models = {"huggyllama/llama-7b", "meta-llama/Llama-2-7b-hf"}
    datasets = {"alpaca", "alpaca_cleaned", "alpaca_short"}
    levels = {cell.plw for cell in cells}
    assert combinations == set(itertools.product(models, datasets, levels))
    for cell in cells:
        assert (cell.masking.name, cell.adapter.kind, cell.embeddings) == (
            "none",
            "full",
            "trained",
        )
        assert (cell.loss.normaliser, cell.loss.scope) == ("weight", "batch")
        assert cell.dataset.splits.train == (0, 1)
        assert (cell.model.source, cell.dataset.source) == ("hub", "hub")
        assert len(cell.model.revision or "") == len(cell.dataset.revision or "") == 40
        assert cell.evaluate.heldout == ()


def test_plw_paper_data(loader):
    sources = {c.dataset.name: c.dataset for c in study(loader, "plw", "paper")}
    assert sources["alpaca"].path == "tatsu-lab/alpaca"
    assert sources["alpaca_cleaned"].path == "yahma/alpaca-cleaned"
    assert sources["alpaca_short"].path == "yahma/alpaca-cleaned"
    assert [name for name, data in sources.items() if data.invert_prompt] == ["alpaca_short"]
    assert {data.template for data in sources.values()} == {"alpaca"}


def test_plw_paper_hyperparameters(loader):
    (train,) = {cell.train for cell in study(loader, "plw", "paper")}
    assert train == schema.Train(
        name="alpaca",
        lr=2e-5,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        schedule="cosine",
        warmup_ratio=0.03,
        epochs=3.0,
        batch_size=4 * 4 * 8,  # GPUs x per device x accumulation
        batch_unit="examples",
        clip=1.0,
        max_length=512,
        boundary="segment",
        precision="bf16",
    )


@pytest.mark.parametrize("scale", ["micro", "smoke"])
def test_plw_in_the_embedded_world_has_the_papers_design(loader, scale):
    cells = study(loader, "plw", scale)
    assert {c.dataset.name for c in cells} == {"micro", "micro_cleaned", "micro_short"}
    assert {(c.masking.name, c.adapter.name, c.embeddings) for c in cells} == {
        ("none", "full", "trained")
    }
    assert len({c.seed for c in cells}) >= 2  # the paper has no replicate, hence no error term


# -- the embedded studies -----------------------------------------------------------------------


def runs(cells):
    """Distinct runs as far as names tell: full tuning has no rank, Alpaca text no role tags."""
    return {
        (
            "none" if c.masking.name == "special" else c.masking.name,
            c.plw,
            c.adapter.name,
            None if c.adapter.kind == "full" else c.rank,
            (c.dataset.name, c.dataset.shuffle_prompts),
            c.loss.normaliser,
            (c.model.name, c.seed, c.sham),
        )
        for c in cells
    }


@pytest.mark.parametrize(("name", "most"), [("quick", 140), ("default", 390), ("plw", 180)])
def test_study_fits_its_budget(loader, name, most):
    assert 0.9 * most < len(runs(study(loader, name))) <= most


@pytest.mark.parametrize(
    ("name", "seeds"), [("quick", {0, 1}), ("default", {0, 1, 2, 3, 4})]
)  # fmt: skip
def test_embedded_study_has_its_factors_and_controls(loader, name, seeds):
    cells = study(loader, name)
    main = [c for c in cells if c.sham == "a" and c.model.name == "micro_0"]
    plain = [c for c in main if c.masking.name != "placebo" and not c.dataset.shuffle_prompts]
    assert {c.seed for c in plain} == seeds
    assert {c.dataset.name for c in plain} == {"micro", "micro_short"}
    arms = {(c.adapter.name, c.rank if c.adapter.kind != "full" else None) for c in plain}
    assert arms == {("full", None), ("lora", 2), ("lora", 8), ("mora", 2), ("mora", 8)}
    weighting = {(c.masking.name, c.plw) for c in plain if c.loss.normaliser == "weight"}
    assert weighting == {
        ("instruction", 0), ("none", 0.01), ("none", 0.1), ("none", 0.5), ("none", 1),
        ("boilerplate", 1), ("special", 1),
    }  # fmt: skip
    assert {c.sham for c in cells} == {"a", "b"}
    assert any(c.masking.name == "placebo" for c in cells)
    assert any(c.dataset.shuffle_prompts for c in cells)
    # Every control has the cell that it is a control for, or it controls nothing.
    real = runs(plain)
    for c in cells:
        if c.sham == "b" or c.masking.name == "placebo" or c.dataset.shuffle_prompts:
            twin = dataclasses.replace(
                c,
                sham="a",
                masking=dataclasses.replace(
                    c.masking, name=c.masking.name.replace("placebo", "none")
                ),
                dataset=dataclasses.replace(c.dataset, shuffle_prompts=False),
            )
            assert runs([twin]) <= real


def test_default_study_rests_on_several_base_models(loader):
    assert len({c.model.name for c in study(loader, "default")}) == 3


def test_tuning_looks_at_nothing_that_a_report_uses(loader):
    cells = study(loader, "tuning")
    others = [c for name in ("quick", "default", "plw") for c in study(loader, name)]
    assert {c.seed for c in cells}.isdisjoint(c.seed for c in others)
    assert {c.evaluate.heldout for c in cells} == {("validation",)}
    assert {c.evaluate.tasks for c in cells} == {()}
    assert {c.masking.name for c in cells} == {"instruction"}


def test_tuning_tries_rates_a_factor_of_two_apart(loader):
    arms = {}
    for c in study(loader, "tuning"):
        arms.setdefault((c.adapter.name, c.rank, c.dataset.name, c.model.name), set()).add(
            c.train.lr
        )
    for rates in arms.values():
        steps = [b / a for a, b in itertools.pairwise(sorted(rates))]
        assert len(rates) >= 4  # more where the best lies at an end: `ablate tune` widens
        assert steps == pytest.approx([2] * len(steps))


def test_every_tuned_cell_of_a_study_has_a_row_of_the_tuning_study(loader):
    """Of the one for all studies, or of its own."""
    common = {rated(c) for c in study(loader, "tuning")}
    for name, scale in SCALES:
        own = study(loader, name, "tuning") if (name, "tuning") in SCALES else []
        for c in study(loader, name, scale) if name != "none" else []:
            assert c.train.lr != "tuned" or rated(c) in common | {rated(c) for c in own}


def rated(cell):
    """What a learning rate is tuned for, the rank apart."""
    return cell.dataset.name, cell.adapter.name, cell.init.name, cell.optimizer.name


# -- adapters at their own rates ----------------------------------------------------------------

STUDIED = {
    "full", "kasa", "rslora", "dora", "waveft", "gralora", "relora", "lora", "mora",
    "lora+orthogonal", "lora+gaussian", "lora+eva", "lora+lora_ga", "lora+pissa", "lora+milora",
    "lora+both_random", "lora+lora_plus",
}  # fmt: skip


def arm_name(cell):
    more = [n for n in (cell.init.name, cell.optimizer.name) if n not in ("default", "adamw")]
    return "+".join([cell.adapter.name, *more])


def rates_of(cells):
    """Return the sorted rates of every arm and batch size."""
    found = {}
    for c in cells:
        found.setdefault((arm_name(c), c.train.batch_size), set()).add(c.train.lr)
    return {key: sorted(rates) for key, rates in found.items()}


@pytest.mark.parametrize(("scale", "batches"), [("paper", 3), ("micro", 3), ("smoke", 2)])
def test_adapters_have_rates_a_root_of_two_apart(loader, scale, batches):
    cells = study(loader, "adapters", scale)
    found = rates_of(cells)
    arms = {arm for arm, _ in found}
    assert arms == STUDIED if scale != "smoke" else arms < STUDIED
    assert len(found) == len(arms) * batches
    assert len(cells) == len(found) * 5 * 2  # rates, seeds
    for rates in found.values():
        steps = [b / a for a, b in itertools.pairwise(rates)]
        assert steps == pytest.approx([math.sqrt(2)] * 4, rel=1e-3)
    for (arm, batch), rates in found.items():  # as the square root of the batch
        for other in (b for a, b in found if a == arm):
            shift = found[arm, other][2] / rates[2]
            assert shift == pytest.approx(math.sqrt(other / batch), rel=1e-3)
    assert {c.train.epochs for c in cells} == {cells[0].train.epochs}  # as many examples at each
    assert {c.evaluate.heldout for c in cells} == {("test", "validation")}


def test_adapters_lie_around_the_tuned_rates_on_seeds_that_chose_nothing(loader):
    cells = study(loader, "adapters")
    found = rates_of(cells)
    screen = study(loader, "adapter_screen")
    tuned = {arm_name(c): Rates().row(c) for c in screen}
    for arm in STUDIED:
        assert found[arm, 16][2] == pytest.approx(tuned[arm].lr)
    assert {c.seed for c in cells}.isdisjoint({c.seed for c in screen})
    assert {c.seed for c in cells}.isdisjoint({c.seed for c in study(loader, "tuning")})
    seeds = {}
    for c in cells:
        seeds.setdefault(c.train.batch_size, set()).add(c.seed)
    assert len(set().union(*seeds.values())) == 2 * len(seeds)  # no seed at two batch sizes


def test_no_arm_of_the_paper_scale_is_another(loader):
    """At rank 16 rsLoRA's scale is LoRA's."""
    ranks = {c.rank for c in study(loader, "adapters", "paper")}
    assert 16 not in ranks
