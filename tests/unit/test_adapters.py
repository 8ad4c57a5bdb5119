"""Every adapter level on a tiny Llama (grouped-query) and a tiny GPT-2 (Conv1D).

A level joins by being a file in conf/adapter; nothing below names one unless it is about it.
"""

import copy
import dataclasses
import functools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ablate import config, model_files, paths
from ablate.adapters import apply, table
from ablate.adapters.mora import MoraLinear
from ablate.errors import UserError
from ablate.streams import Streams

LEVELS = tuple(sorted(file.stem for file in (paths.conf_dir() / "adapter").glob("*.yaml")))
ADAPTING = tuple(n for n in LEVELS if n not in ("none", "full"))
ARCHITECTURES = ("llama", "gpt2", "llama_tied")
RANK = 4
VOCABULARY = 60


def adapter(level: str, **changes) -> config.Adapter:
    tree = OmegaConf.to_container(OmegaConf.load(paths.conf_dir() / "adapter" / f"{level}.yaml"))
    options = tree["options"] | changes.pop("options", {})
    return config.Adapter(**(tree | {"options": options} | changes))


def cell(level, *, rank: int = RANK, embeddings: str = "frozen", seed: int = 0) -> config.Cell:
    chosen = level if isinstance(level, config.Adapter) else adapter(level)
    weights = {role: 1.0 for role in config.MASKED_ROLES}
    return config.Cell(
        masking=config.Masking(name="none", weights=weights),
        plw=1.0,
        loss=config.Loss(),
        adapter=chosen,
        rank=rank,
        embeddings=embeddings,
        dataset=config.Dataset(name="d", source="local", path="x"),
        model=config.Model(name="m", source="local", path="x"),
        train=config.Train(name="t", lr=0.01),
        evaluate=config.Evaluate(name="e"),
        execution=config.Execution(),
        seed=seed,
    )


def base(architecture: str) -> nn.Module:
    """A random model, the same at every call."""
    return copy.deepcopy(_pristine(architecture))


@functools.cache
def _pristine(architecture: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if architecture == "gpt2":
            sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
            return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes)).eval()
        settings = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=44,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.1,
            tie_word_embeddings=architecture == "llama_tied",
        )
        return LlamaForCausalLM(settings).eval()


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(module: nn.Module) -> Tensor:
    return module(input_ids=tokens()).logits


def applied(level, architecture: str = "llama", **settings) -> nn.Module:
    asked = cell(level, **settings)
    return apply.apply(base(architecture), asked, streams=Streams(asked.seed))


def fit(module: nn.Module, steps: int = 3) -> list[float]:
    """Train for some steps and return the losses before each and after the last."""
    params = list(apply.trained(module).values())
    optimizer = torch.optim.AdamW(params, lr=0.01, weight_decay=0.0) if params else None
    losses = []
    for _ in range(steps + 1):
        loss = module(input_ids=tokens(), labels=tokens()).loss
        losses.append(loss.item())
        if optimizer and len(losses) <= steps:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return losses


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@dataclasses.dataclass(frozen=True)
class LiveSizes:
    """Counts taken from a model in memory, where the planner takes them from its files."""

    linear_shapes: dict[str, tuple[int, int]]
    parameters: int
    embedding_parameters: int


def sizes(architecture: str) -> LiveSizes:
    model = base(architecture)
    return LiveSizes(
        linear_shapes=apply.linear_shapes(model),
        parameters=sum(p.numel() for p in model.parameters()),
        embedding_parameters=VOCABULARY * 32 * (2 if architecture == "llama" else 1),
    )


# --- every level


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_complete_and_legal(level):
    chosen = adapter(level)
    assert chosen.name == level
    assert set(chosen.options) == set(table.KINDS[chosen.kind].options)
    table.check(chosen, RANK, sizes("llama").linear_shapes)
    first = (paths.conf_dir() / "adapter" / f"{level}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")


def test_every_kind_can_be_built_and_has_a_level():
    assert {adapter(level).kind for level in LEVELS} == set(table.KINDS)
    assert set(apply._CONFIGS) == {name for name, kind in table.KINDS.items() if kind.adapts}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_starts_at_the_base_and_draws_nothing_global(level, architecture):
    model = base(architecture)
    expected = logits(model)
    before = torch.random.get_rng_state()
    module = apply.apply(model, cell(level, embeddings="trained"), streams=Streams(0))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not module.training
    torch.testing.assert_close(logits(module), expected, rtol=0, atol=0)


@pytest.mark.parametrize("embeddings", ["frozen", "trained"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("level", LEVELS)
def test_trained_parameters_equal_the_closed_form(level, architecture, embeddings):
    module = applied(level, architecture, embeddings=embeddings)
    counted = sum(p.numel() for p in apply.trained(module).values())
    stated = table.trainable_parameters(
        adapter(level), RANK, sizes(architecture), embeddings=embeddings
    )
    assert counted == stated


@pytest.mark.parametrize("embeddings", ["frozen", "trained"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_declared_trainable_changes_and_nothing_else(level, architecture, embeddings):
    module = applied(level, architecture, embeddings=embeddings)
    declared, before = set(apply.trained(module)), weights(module)
    losses = fit(module)
    moved = {name for name, w in weights(module).items() if not torch.equal(w, before[name])}
    assert moved == declared
    ends = {n for n in declared if "embed_tokens" in n or "wte" in n or "lm_head" in n}
    expected = 0 if embeddings == "frozen" or level == "none" else 1 + (architecture == "llama")
    assert len(ends) == expected
    assert (losses[-1] < losses[0]) == (level != "none")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_planner_reads_from_files_what_is_true_in_memory(architecture, tmp_path):
    base(architecture).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    asked = config.Model(name="m", source="local", path=str(tmp_path))
    files, live = model_files.resolve(asked), sizes(architecture)
    assert files.linear_shapes == live.linear_shapes
    assert files.parameters == live.parameters
    assert files.embedding_parameters == live.embedding_parameters


def test_no_two_levels_train_alike():
    traces = {level: tuple(fit(applied(level), steps=4)) for level in LEVELS}
    assert len(set(traces.values())) == len(LEVELS)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("level", ADAPTING)
def test_disabling_gives_the_base_and_merging_gives_the_adapted_model(level, architecture):
    module = applied(level, architecture)
    fit(module)
    plain, tuned = logits(base(architecture)), logits(module)
    assert (tuned - plain).abs().max() > 1e-2
    with module.disable_adapter():
        torch.testing.assert_close(logits(module), plain, rtol=0, atol=0)
    module.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(module), tuned, rtol=0, atol=2e-5)
    module.unmerge_adapter()
    torch.testing.assert_close(logits(module), tuned, rtol=0, atol=2e-5)
    merged = module.merge_and_unload()
    assert not any(isinstance(m, LoraLayer | MoraLinear) for m in merged.modules())
    torch.testing.assert_close(logits(merged), tuned, rtol=0, atol=2e-5)


RELOAD = """
    import copy, functools, json, sys
    from pathlib import Path
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from ablate import config
    from ablate.adapters import apply

    torch.set_num_threads(1)
    root = Path(sys.argv[1])

    @functools.cache
    def pristine(name):
        return AutoModelForCausalLM.from_pretrained(root / f"base-{name}").eval()

    for folder in sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("base")):
        stored = load_file(folder / "logits.safetensors")
        cell = config.build(json.loads((folder / "cell.json").read_text()))
        def base():
            return copy.deepcopy(pristine(cell.model.name))
        ways = {"ours": lambda: apply.load(base(), folder, cell)}
        if (folder / "peft").is_dir():
            ways["peft"] = lambda: PeftModel.from_pretrained(base(), str(folder / "peft"))
        for way, build in ways.items():
            with torch.no_grad():
                logits = build()(input_ids=stored["ids"]).logits
            error = float((logits - stored["logits"]).abs().max())
            print(json.dumps([folder.name, way, error]))
"""


def test_saved_weights_give_equal_logits_in_a_fresh_process(tmp_path):
    expected = {}
    for architecture in ARCHITECTURES:
        base(architecture).save_pretrained(tmp_path / f"base-{architecture}")
        for level in LEVELS:
            for embeddings in ("frozen", "trained"):
                name = f"{level}-{architecture}-{embeddings}"
                _store(tmp_path / name, level, architecture, embeddings)
                ways = ("ours", "peft") if level in ADAPTING else ("ours",)
                expected |= {(name, way): 0.0 for way in ways}
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(RELOAD), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    errors = {(name, way): error for name, way, error in lines}
    assert errors.keys() == expected.keys()
    assert {name: e for name, e in errors.items() if e > 1e-6} == {}


def _store(folder: Path, level: str, architecture: str, embeddings: str) -> None:
    asked = cell(level, embeddings=embeddings)
    asked = dataclasses.replace(asked, model=dataclasses.replace(asked.model, name=architecture))
    module = apply.apply(base(architecture), asked, streams=Streams(0))
    fit(module)
    apply.save(module, folder)
    (folder / "cell.json").write_text(json.dumps(config.plain(asked)))
    save_file({"ids": tokens(), "logits": logits(module)}, folder / "logits.safetensors")
    if level in ADAPTING:
        module.save_pretrained(folder / "peft", save_embedding_layers=embeddings == "trained")


def test_saved_file_holds_the_trained_weights_and_nothing_else(tmp_path):
    module = applied("mora", embeddings="trained")
    apply.save(module, tmp_path / "new" / "folder")
    stored = load_file(tmp_path / "new" / "folder" / apply.WEIGHTS)
    assert set(stored) == set(apply.trained(module))
    apply.save(applied("none"), tmp_path)
    assert load_file(tmp_path / apply.WEIGHTS) == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 2}, "rank=2"),
        ({"embeddings": "trained"}, "embeddings=trained"),
        ({"level": "dora"}, "adapter=dora"),
    ],
)
def test_weights_of_another_cell_are_refused(changes, said, tmp_path):
    apply.save(applied("lora"), tmp_path)
    asked = cell(changes.pop("level", "lora"), **changes)
    with pytest.raises(UserError, match=said):
        apply.load(base("llama"), tmp_path, asked)


def test_missing_weights_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no trained weights"):
        apply.load(base("llama"), tmp_path, cell("lora"))


# --- LoRA's start and scale


def factors(module: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    return {
        name: (m.lora_A["default"].weight.detach(), m.lora_B["default"].weight.detach())
        for name, m in module.named_modules()
        if isinstance(m, LoraLayer)
    }


@pytest.mark.parametrize("level", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_rows_are_nested_over_the_rank(level, architecture):
    small = factors(applied(level, architecture, rank=4))
    large = factors(applied(level, architecture, rank=16))
    assert len(small) == len(large) == (14 if architecture == "llama" else 8)
    for name, (A, B) in small.items():
        assert torch.equal(A, large[name][0][:4])
        assert len({tuple(row.tolist()) for row in large[name][0]}) == 16
        assert not B.any()


def test_lora_draws_depend_on_seed_and_module_alone():
    first = factors(applied("lora"))
    again, dora = factors(applied("lora")), factors(applied("dora"))
    other = factors(applied("lora", seed=1))
    some = factors(applied(adapter("lora", targets=("v_proj", "mlp.down_proj"))))
    assert len(some) == 4
    for name, (A, _) in first.items():
        assert torch.equal(A, again[name][0])
        assert torch.equal(A, dora[name][0])
        assert not torch.equal(A, other[name][0])
        assert name not in some or torch.equal(A, some[name][0])
    rows = torch.cat([A[:, :32].flatten(1) for A, _ in first.values()])
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)  # no two modules share a draw


def test_lora_draws_follow_pefts_law():
    A = factors(applied("lora", rank=16))["base_model.model.model.layers.0.mlp.down_proj"][0]
    bound = 44**-0.5  # kaiming_uniform(a = sqrt 5): U(-1 / sqrt k, 1 / sqrt k)
    assert A.abs().max() < bound
    assert A.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # 704 draws: 1.7 % in sd


@pytest.mark.parametrize(
    ("level", "rank", "scale"),
    [("lora", 1, 2.0), ("lora", 16, 2.0), ("rslora", 4, 4.0), ("rslora", 16, 2.0)],
)
def test_lora_scale(level, rank, scale):
    module = applied(level, rank=rank)
    layer = next(m for m in module.modules() if isinstance(m, LoraLayer))
    layer.lora_B["default"].weight.data.fill_(0.5)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer.get_delta_weight("default"), scale * B @ A)
    shapes = sizes("llama").linear_shapes
    assert table.capacity(adapter(level), rank, shapes)["scale"] == scale


def test_dropout_reaches_the_layers_and_sleeps_in_evaluation():
    for level in ADAPTING:
        module = applied(adapter(level, options={"dropout": 0.5}))
        drops = [m for m in module.modules() if isinstance(m, nn.Dropout)]
        assert {m.p for m in drops} == {0.5}
        assert not any(m.training for m in drops)


# --- the table

SQUARE = {f"layers.{i}.{n}_proj": (64, 64) for i in range(2) for n in "qkvo"}
SHAPES = SQUARE | {"layers.0.up_proj": (170, 64), "layers.0.down_proj": (64, 170)}


def same(one: tuple, other: tuple, shapes=SHAPES) -> bool:
    return table.capacity(*one, shapes) == table.capacity(*other, shapes)


def test_capacities_that_are_one_run_are_equal_and_others_are_not():
    lora, rslora, mora = adapter("lora"), adapter("rslora"), adapter("mora_rotation")
    assert same((adapter("full"), 1), (adapter("full"), 64))
    assert same((adapter("none"), 1), (adapter("none"), 64))
    assert not same((adapter("full"), 1), (adapter("none"), 1))
    assert not same((lora, 4), (lora, 8))
    assert same((lora, 16), (rslora, 16))  # one scale, 2
    assert not same((lora, 8), (rslora, 8))
    assert same((lora, 4), (adapter("lora", options={"alpha": 8}), 4))
    assert not same((lora, 4), (adapter("dora"), 4))
    assert not same((lora, 4), (adapter("lora", options={"dropout": 0.05}), 4))
    assert same((mora, 61), (mora, 62), SQUARE)  # sides 88 and 89, both cut to 64
    assert not same((mora, 4), (mora, 5), SQUARE)
    assert not same((mora, 4), (adapter("mora"), 4))
    assert same((adapter("mora"), 4), (adapter("mora", options={"type": "auto"}), 4))
    quarter = adapter("lora", targets=("q_proj",))
    assert not same((lora, 4), (quarter, 4))
    assert same((quarter, 4), (adapter("lora", targets="q_proj"), 4))
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    assert same((lora, 4), (adapter("lora", targets=every), 4))


def test_ranks_that_round_to_one_side_are_one_run():
    tiny = {"proj": (2, 2)}
    rotation = adapter("mora_rotation")
    assert same((rotation, 1), (rotation, 2), tiny)  # sides 2 and 2


def test_budget_of_a_small_model():
    d_plus_k = 8 * 128 + 2 * 234
    assert table.budget(adapter("lora"), 4, SHAPES) == table.Budget(4 * d_plus_k, 4 * d_plus_k)
    dora = table.budget(adapter("dora"), 4, SHAPES)
    assert dora.got - dora.asked == 8 * 64 + 170 + 64
    mora = table.budget(adapter("mora"), 4, SHAPES)
    assert (mora.asked, mora.got) == (4 * d_plus_k, 8 * 22**2 + 2 * 30**2)
    assert mora.ratio == 5672 / 5968
    assert table.budget(adapter("full"), 4, SHAPES) is None


LLAMA_2_7B = {
    f"layers.{i}.{name}": shape
    for i in range(32)
    for name, shape in (
        *((f"self_attn.{n}_proj", (4096, 4096)) for n in "qkvo"),
        ("mlp.gate_proj", (11008, 4096)),
        ("mlp.up_proj", (11008, 4096)),
        ("mlp.down_proj", (4096, 11008)),
    )
}


@pytest.mark.parametrize("rank", [8, 16, 64, 128, 256])
def test_budgets_match_at_the_papers_size(rank):
    lora = table.budget(adapter("lora"), rank, LLAMA_2_7B)
    assert lora.got == 32 * rank * (4 * 8192 + 3 * 15104)
    for level in ("mora", "mora_rotation"):
        assert 0.99 < table.budget(adapter(level), rank, LLAMA_2_7B).ratio <= 1


BAD = {
    "kind": (adapter("lora", kind="lroa"), 4, "adapter.kind=lroa.*Did you mean 'lora'"),
    "option": (
        adapter("lora", options={"droput": 0.1}),
        4,
        "adapter.options.droput.*Did you mean 'dropout'",
    ),
    "option of another kind": (
        adapter("full", options={"alpha": 1.0}),
        4,
        "options.alpha: kind full has no such option, only none",
    ),
    "dropout of one": (adapter("lora", options={"dropout": 1.0}), 4, "dropout=1.0: must be"),
    "dropout in words": (adapter("mora", options={"dropout": "some"}), 4, "dropout=some: must"),
    "alpha of zero": (adapter("lora", options={"alpha": 0}), 4, "alpha=0: must be positive"),
    "alpha that is a flag": (adapter("lora", options={"alpha_over_rank": True}), 4, "=True: must"),
    "flag that is a number": (adapter("lora", options={"dora": 1}), 4, "dora=1: must be true or"),
    "type": (adapter("mora", options={"type": "rotary"}), 4, "type=rotary: must be one of"),
    "target": (adapter("lora", targets=("q_porj",)), 4, "targets=q_porj.*Did you mean 'q_proj'"),
    "one target of two": (adapter("mora", targets=("q_proj", "gate")), 4, "targets=gate"),
    "part of a name": (adapter("lora", targets=("proj",)), 4, "adapter.targets=proj"),
    "no target": (adapter("lora", targets=()), 4, "must name a module"),
    "targets of full": (adapter("full", targets=("q_proj",)), 4, "kind full has no targets"),
    "rank": (adapter("lora"), 65, r"rank=65: must be at most 64, .* layers.0.q_proj \(64 x 64\)"),
    "rank of mora": (adapter("mora"), 65, "rank=65: must be at most 64"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_requests_are_one_line(case):
    chosen, rank, said = case
    with pytest.raises(UserError, match=said) as raised:
        table.check(chosen, rank, SHAPES)
    assert "\n" not in str(raised.value)


def test_rank_limit_is_of_the_adapted_matrices_only():
    shapes = SHAPES | {"layers.0.small": (8, 64)}
    table.check(adapter("lora", targets=("q_proj",)), 64, shapes)
    table.check(adapter("full"), 1000, shapes)
    with pytest.raises(UserError, match="at most 8"):
        table.check(adapter("lora"), 9, shapes)


def test_apply_refuses_a_rank_above_a_live_matrix():
    with pytest.raises(UserError, match=r"rank=17: must be at most 16, .*k_proj \(16 x 32\)"):
        applied("lora", rank=17)


def test_table_needs_no_torch():
    code = "import sys; from ablate.adapters import table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
