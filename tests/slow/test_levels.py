"""Every level on a tiny GPT-2 too, undone, reloaded in a fresh process, and on odd shapes.

A level joins by being a file (`tests.levels`). What is quick is in tests/unit/test_adapters.py.
"""

import dataclasses
import functools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from ablate.adapters import build, registry, start, weights
from ablate.config import schema
from ablate.config.build import plain
from ablate.errors import UserError
from ablate.evaluate import generate, heldout
from ablate.streams import Streams
from tests import levels, toys
from tests.levels import ADAPTING, cell

pytestmark = pytest.mark.slow

# Float32 sums in another order, of weights that a large step has made large; a merge that is wrong
# is off by 1e-2 and more.
ROUNDING = 1e-4
EVERY = levels.cases("llama", "gpt2")


def row_of(name: str):
    return registry.method(levels.SUBJECTS[name].adapter)


def changes_base(name: str) -> bool:
    return start.changes_base(levels.SUBJECTS[name])


def same(one: Tensor, other: Tensor, atol: float = ROUNDING) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


# --- GPT-2: what tests/unit/test_adapters.py asks of the Llama


@pytest.mark.parametrize(("name", "architecture"), levels.cases("gpt2"))
def test_gpt2_starts_trains_and_counts_as_it_says(name, architecture):
    run = levels.run(name, architecture)
    if start.at_base(levels.SUBJECTS[name]):
        same(run.start, run.base, 1e-5)
    else:
        assert (run.start - run.base).abs().max() > 1e-4
    assert run.moved == (set() if name in levels.STILL else run.declared)
    stated = registry.trainable_parameters(levels.SUBJECTS[name], levels.sizes(architecture))
    assert run.counted == stated
    if name not in levels.STILL:
        assert run.losses[-1] < run.losses[0] - 0.02


def test_no_two_levels_train_alike_on_gpt2():
    seen: dict[tuple[float, ...], str] = {}
    for name, architecture in levels.cases("gpt2"):
        trace = tuple(levels.run(name, architecture).losses)
        assert trace not in seen, f"{name} trains as {seen.get(trace)} does"
        seen[trace] = name


# --- undone

WRAPPED = [(n, a) for n, a in EVERY if row_of(n).adapts]


@functools.cache
def undone(name: str, architecture: str) -> levels.Undone:
    return levels.undone(levels.run(name, architecture).module)


@pytest.mark.parametrize(("name", "architecture"), WRAPPED)
def test_disabling_gives_the_base(name, architecture):
    """To the last bit, but for what a start has taken out of the weights and has to put back."""
    run = levels.run(name, architecture)
    with run.module.disable_adapter():
        same(levels.logits(run.module), run.base, 1e-5 if changes_base(name) else 0)
    same(levels.logits(run.module), run.tuned, 1e-5 if changes_base(name) else 0)


@pytest.mark.parametrize(("name", "architecture"), [(n, a) for n, a in WRAPPED if row_of(n).merges])
def test_merging_gives_the_adapted_model_and_unmerging_gives_it_back(name, architecture):
    run, found = levels.run(name, architecture), undone(name, architecture)
    same(found.merged, run.tuned)
    same(found.unmerged, run.tuned)
    same(found.unloaded, run.tuned)
    assert found.leftover == 0


# --- reloaded

RELOAD = """
    import copy, functools, json, sys
    from pathlib import Path
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    from ablate.adapters import weights
    from ablate.config.build import build as build_cell
    from ablate.streams import Streams

    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    import ablate.adapters.tuners  # PEFT must know our types before it is asked for one

    @functools.cache
    def pristine(name):
        return AutoModelForCausalLM.from_pretrained(root / f"base-{name}").eval()

    for folder in sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("base")):
        stored = load_file(folder / "logits.bin")
        cell = build_cell(json.loads((folder / "cell.json").read_text()))
        base = lambda: copy.deepcopy(pristine(cell.model.name))
        models = [weights.load(base(), folder, cell, streams=Streams(cell.seed))]
        if (folder / "adapter_config.json").is_file():
            models.append(PeftModel.from_pretrained(base(), folder))
        for way, model in zip(("ours", "peft"), models):
            with torch.no_grad():
                logits = model(input_ids=stored["ids"]).logits[:, -stored["ids"].shape[1]:]
            size = float(stored["logits"].abs().max())
            error = float((logits - stored["logits"]).abs().max()) / size
            print(json.dumps([f"{folder.name} {way}", error]))
"""


def store(name: str, architecture: str, root: Path) -> list[str]:
    """Write a trained level and return the names of the ways in which it is read again."""
    run, folder = levels.run(name, architecture), root / f"{name}-{architecture}"
    asked = levels.SUBJECTS[name]
    asked = dataclasses.replace(asked, model=dataclasses.replace(asked.model, name=architecture))
    weights.save(run.module, folder)
    (folder / "cell.json").write_text(json.dumps(plain(asked)))
    stored = {"ids": levels.tokens(), "logits": run.tuned.contiguous()}
    save_file(stored, folder / "logits.bin")
    return [f"{folder.name} ours"] + [f"{folder.name} peft"] * row_of(name).adapts


def test_saved_weights_give_equal_logits_in_a_fresh_process(tmp_path):
    expected: list[str] = []
    for architecture in ("llama", "gpt2"):
        levels.pristine(architecture).save_pretrained(tmp_path / f"base-{architecture}")
        for name, _ in levels.cases(architecture):
            expected += store(name, architecture, tmp_path)
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(RELOAD), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    errors = dict(json.loads(line) for line in answer.stdout.splitlines())
    assert errors.keys() == set(expected)
    # In another process memory may lie otherwise; PEFT may add in another order.
    assert {name: error for name, error in errors.items() if not error < toys.ROUNDING} == {}


@pytest.mark.parametrize("level", ["full", "lora", "mora"])
def test_a_tied_head_is_reloaded_with_its_embedding(level, tmp_path):
    asked = cell(level, embeddings="trained")
    module = levels.applied(asked, "llama_tied")
    levels.fit(module, asked)
    weights.save(module, tmp_path)
    again = weights.load(levels.base("llama_tied"), tmp_path, asked, streams=Streams(0))
    same(levels.logits(again), levels.logits(module), 0)


# --- embeddings


@pytest.mark.parametrize("architecture", levels.ARCHITECTURES)
@pytest.mark.parametrize("level", levels.LEVELS)
def test_embeddings_train_beside_every_level(level, architecture):
    if not levels.applies(level, architecture):
        assert architecture == "gpt2"
        return
    asked = cell(level, embeddings="trained")
    module = levels.applied(asked, architecture)
    trained = build.trained(module)
    counted = sum(p.numel() for p in trained.values())
    assert counted == registry.trainable_parameters(asked, levels.sizes(architecture))
    ends = {n for n in trained if "embed_tokens" in n or "wte" in n or "lm_head" in n}
    both = 0 if level == "none" else 2 if architecture == "llama" else 1
    assert len(ends) == both
    before = levels.weights(module)
    if trained:
        levels.fit(module, asked)
    now = levels.weights(module)
    assert {n for n in ends if torch.equal(now[n], before[n])} == set()


# --- dropout and placement


@pytest.mark.parametrize("level", [n for n in ADAPTING if "dropout" in levels.adapter(n).options])
def test_dropout_reaches_the_layers_and_sleeps_in_evaluation(level):
    module = levels.applied(cell(levels.adapter(level, options={"dropout": 0.5})))
    drops = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.p]
    assert len(drops) >= 14
    assert {m.p for m in drops} == {0.5}
    assert not any(m.training for m in drops)


@pytest.mark.parametrize("level", [n for n in ADAPTING if row_of(n).placed])
def test_every_level_stays_where_it_is_placed(level):
    expected = {n for n in levels.sizes("llama").linear_shapes if "layers.1." in n}
    only = row_of(level).only
    expected = {n for n in expected if n.endswith(only)} if only else expected
    asked = cell(level, placement=schema.Placement(name="p", layers=(1,)))
    module = levels.applied(asked)
    layers = [n for n, m in module.named_modules() if hasattr(m, "merged_adapters")]
    assert {name.removeprefix("base_model.model.") for name in layers} == expected


# --- counts on shapes of every kind

SHAPES = {
    "one key head": {"hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 3},
    "wide heads": {"hidden_size": 24, "intermediate_size": 100, "head_dim": 20},
    "odd": {"hidden_size": 30, "intermediate_size": 66, "num_attention_heads": 3},
}


def llama(shape: str) -> nn.Module:
    settings = {"num_attention_heads": 2, "num_key_value_heads": 1, **SHAPES[shape]}
    model = LlamaConfig(vocab_size=toys.VOCAB, num_hidden_layers=1, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(model).eval()


@pytest.mark.parametrize("rank", [1, 3, 10])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", ADAPTING)
def test_closed_forms_hold_on_every_shape(level, shape, rank):
    model, asked = llama(shape), cell(level, rank=rank)
    shapes = build.linear_shapes(model)
    if (level, shape) == ("boft", "odd"):  # 30 inputs have no room for two factors of pairs
        with pytest.raises(UserError, match="divisible by 4"):
            registry.check(asked, shapes)
        return
    norms = [model.get_submodule(name) for name in build.norms(model)]
    size = sum(p.numel() for norm in norms for p in norm.parameters())
    stated = registry.budget(asked, shapes, norms=size).got
    module = build.apply(model, asked, streams=Streams(0), data=levels.DATA)
    assert sum(p.numel() for p in build.trained(module).values()) == stated


# --- virtual tokens

PROMPTS = [level for level in ADAPTING if not row_of(level).placed and not row_of(level).packs]


def with_drawn_tokens(level: str, architecture: str) -> nn.Module:
    """A level whose virtual tokens matter: drawn, not trained for a few steps."""
    module = levels.applied(cell(level), architecture)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in build.trained(module).values():
            parameter.normal_(generator=generator)
    return module


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("level", PROMPTS)
def test_virtual_tokens_leave_attention_causal(level, architecture):
    module, ids = with_drawn_tokens(level, architecture), levels.tokens()
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % toys.VOCAB
    with torch.no_grad():
        one, other = (
            module(input_ids=i, use_cache=False).logits[:, -ids.shape[1] :] for i in (ids, changed)
        )
    same(one[:, :-1], other[:, :-1], 0)
    assert (one[:, -1] - other[:, -1]).abs().max() > 0.1


@pytest.mark.parametrize("level", PROMPTS)
def test_heldout_losses_stand_behind_the_virtual_tokens(level):
    module = with_drawn_tokens(level, "llama")
    found = heldout.row_losses(module, levels.DATA, rows=3, batch_size=3)
    for number in range(3):
        ids, _ = levels.DATA.row(number)
        ids_L = torch.from_numpy(ids).long()
        with torch.no_grad():
            logits_LV = module(input_ids=ids_L[None]).logits[0, -len(ids) :]
        alone = nn.functional.cross_entropy(logits_LV[:-1], ids_L[1:], reduction="sum")
        assert found.sums_NR[number].sum() == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("level", PROMPTS)
def test_generation_does_not_depend_on_the_prompts_beside(level, architecture):
    """A batch is padded on the left: positions must not move a prompt away from its tokens."""
    module = with_drawn_tokens(level, architecture)
    prompts = [row[: 4 + 4 * i].tolist() for i, row in enumerate(levels.tokens()[:3])]
    together = generate.answers(module, prompts, stops=[], max_new=6, batch_size=3)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                last = module(input_ids=torch.tensor([alone]), use_cache=False).logits[0, -1]
            alone.append(int(last.argmax()))
        assert answer == alone[len(prompt) :]
