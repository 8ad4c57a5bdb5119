"""docs/adapters.md: every adapter level, its trained parameters and their ratio to LoRA's.

    python -m tests.catalogue > docs/adapters.md

No model is built: the counts are those that a plan shows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import yaml

from ablate.adapters import compatibility, registry, start
from ablate.adapters.init.spec import INITS
from ablate.adapters.method import GENERAL, PRECISIONS, Method, Shapes, lora_count
from ablate.adapters.optimizers import OPTIMIZERS
from ablate.config import grid
from ablate.config.compose import expand
from ablate.config.composer import config_loader
from ablate.config.schema import Cell, Optimizer
from ablate.errors import UserError
from ablate.paths import conf_dir

RANKS = (4, 8, 16, 32, 64, 128, 256)


def _llama(layers: int, width: int, keys: int, inner: int) -> dict[str, tuple[int, int]]:
    """Return the linear layers of a Llama: outputs x inputs by name."""
    block = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    return {f"model.layers.{i}.{n}": s for i in range(layers) for n, s in block.items()}


# Linear layers, and the number of norm parameters: two norms per layer and one after the last.
MODELS: dict[str, tuple[Shapes, int]] = {
    "Llama-3.2-1B": (_llama(16, 2048, 512, 8192), 33 * 2048),
    "Llama-2-7B": (_llama(32, 4096, 4096, 11008), 65 * 4096),
}

INTRODUCTION = """\
# Adapter levels

`python -m tests.catalogue` prints this page. A level is a file in `conf/adapter`; its options and
their defaults are listed there. `rank` is a budget: LoRA's r (d + k) trained parameters for each
adapted matrix of d outputs and k inputs. Every method turns it into the value of its own capacity
setting whose total number of parameters is nearest to the budget; `plan` and the record show both
numbers.

A budget counts as *matched* within 10 %. Methods that cannot reach it at any common rank are
*never* matched, so that the analysis can leave them out.

`adapter=full` trains the decoder: embedding and head stay frozen, as beside every adapter, until
`embeddings=trained`.

Unless the last column says otherwise, a level starts at the base's outputs, can be merged into the
base's weights exactly, supports GPT-2's transposed layers, keeps packed examples apart and supports
a base in fp32 or bf16. Random tensors that do not train (bases, positions, masks) follow the cell's
seed. A combination with an initialisation, an optimizer or a base precision that is not listed is
refused: PEFT would ignore it, or fail in the middle of a sweep.
"""

DECAY = """\
## Weight decay

Decoupled weight decay subtracts `train.lr` x `train.weight_decay` x p from every trained matrix p;
vectors (norms, biases, magnitudes) do not decay. For most methods a matrix of zeros is no change,
so decay pulls towards the base. Where it is not (scales from one, matrices from the identity or
from parts of the weight, starts that are subtracted from the base, virtual tokens), decay acts on
p - p0, the distance from the start, under every optimizer, and the identity of the run says so. A
test of every level sets all gradients to zero and finds no adapter farther from its base for it.
Full fine-tuning, and embeddings that train beside an adapter, keep ordinary decay, towards zero:
that is what practitioners run, and it does pull the model away from its base.
"""

MEMORY = """\
## Weights in 16 bits, and optimizers with little memory

A weight in bfloat16 does not change by a step below half the distance to its neighbours, at a rate
of 2e-5 most of them. Weights of a bf16 base that train (`adapter=full`, `embeddings=trained`) are
therefore trained in fp32 copies, which are rounded into the model after each step, or, under
`optimizer=adamw_8bit`, rounded up or down at random so that small steps add up in the mean.
Adapters' own weights are fp32 on every base. Bytes a trained parameter of a bf16 base:

| optimizer | weight and gradient | fp32 copy, its gradient | moments |
| --- | --- | --- | --- |
| `adamw` | 4 | 8 | 8 |
| `adamw_8bit` | 4 | 0 | 2.03 |
| `adafactor` | 4 | 8 | below 0.5 |
| `lion` | 4 | 8 | 4 |
| `adamw_bnb_8bit` | 4 | 8 | 2.03 |
| `paged_adamw` | 4 | 8 | 8, moved to the CPU where the GPU is full |
| `paged_adamw_8bit` | 4 | 8 | 2.03, the same |

`execution.offload_optimizer=true` keeps fp32 copies and moments of what trains of the base on the
CPU (16 bytes a parameter, pinned) and steps there, with the numbers of `adamw` on the GPU but for
rounding; an adapter's stay on the GPU. The 8-bit moments are those of the paper's library (blocks
of 256, tensors below 4,096 numbers in fp32). Gradients of several micro-batches are summed in the
weight's precision.

`base_precision=auto` is bf16 where `train.precision` is and nothing of the base trains, else fp32:
it halves the memory of a frozen base. It is resolved before anything runs, from the cell alone, so
a record and its key say bf16 or fp32. Under nf4, 4-bit layers compute in `train.precision`.
"""

DEVIATIONS = """\
## Where a level is not its authors' code

Read in the authors' repositories in November 2026. What a paper says is followed where paper and
code differ, unless the table says otherwise; budgets are matched to LoRA's here in all of them.
"""

# Level: what its authors' code does, and what is done here.
DIFFERENCES = {
    "`slora`": (
        "draws A as PEFT does for LoRA, uniform, which is MoSLoRA; alpha = r by default",
        "A normal with variance 1 / k, as its Figure 2 says (it gives no variance); scale 2, as "
        "for `lora`",
    ),
    "`nlora`": (
        "adds the start B M A to the base's output, so training begins off the base; M is the "
        "corner itself (the pseudo-inverse is commented out)",
        "the start is subtracted, so training begins at the base; M is the corner (`start: "
        "nystrom_inverse` takes its pseudo-inverse)",
    ),
    "`inttune`": (
        "as for `nlora`, with A and B fixed after the start",
        "as for `nlora`; A and B fixed",
    ),
    "`lamda`": (
        "draws the middle matrix as a linear layer and takes A and B from LoRA's start or a "
        "LoftQ checkpoint, not from the weight; zeroes the gradient of one column of B more "
        "after each 30 % of the run, three columns in all, while Adam's momentum still moves "
        "them; dropout 0.1, decay 0.1",
        "the paper's: A, M and B are the leading singular triples of the weight, subtracted at "
        "the start; all columns of B are frozen within the first 30 % of the run and do not "
        "move afterwards",
    ),
    "`lora_xs`": (
        "draws the middle matrix from N(0, 1e-10); an approximate SVD of 10 iterations",
        "zero, so that training begins exactly at the base; the exact SVD; singular values on "
        "the side of the input, as in the code",
    ),
    "`lora_sb`": (
        "step of the imitated update: the rate over the number of warm-up steps; gradients of a "
        "sample of rows",
        "the same step (`step: null`); gradients of the run's own first batches, under its own "
        "weights of tokens",
    ),
    "`relora`, `remora`": (
        "cosine to a tenth of the rate, and after a restart a ramp to the cosine at its end; a "
        "ramp of 50 to 100 steps of 1,000 to 5,000; ReLoRA prunes optimizer states instead of "
        "clearing them",
        "the same floor (`floor: 0.1`); the ramp multiplies the cosine of its own step, and is "
        "a fortieth of a stage, or 4 steps where that is one; states are cleared; no full-rank "
        "training first",
    ),
    "`init=milora`": (
        "halves of sqrt(S / scale) on both sides, in the base's 16 bits",
        "the same, in 32 bits",
    ),
    "`init=both_random`": (
        "PEFT draws B from U(-1/sqrt(r), 1/sqrt(r)) under `init_lora_weights=False`",
        "B from U(-1/sqrt(d), 1/sqrt(d)): the product with A is small beside a wide weight, the "
        "case that arXiv 2505.23194 finds harmless",
    ),
}

BOTH_ZERO = """\
Both factors zero is a bug in the wild (microsoft/LoRA#98 asks why one must not be; litgpt#1229 and
relora#18 trained nothing for it), so `init=both_zero` is a control and every plan says so.
"""

WEIGHTS = """\
## Weights on disk

`OUT/cells/KEY/weights/` holds a run's adapter as PEFT saves it (`adapter_config.json`,
`adapter_model.safetensors`, with the embeddings where they train), or after full fine-tuning a
model folder. Starts that move a part of the base's weight into the adapter (PiSSA, MiLoRA, OLoRA,
CorDA, LoRA-GA, KaSA) are stored as a plain LoRA of twice the rank on the untouched base.

```python
import ablate.adapters.tuners  # registers this project's own PEFT types

model = PeftModel.from_pretrained(base, "results/mine/cells/KEY/weights")
```

Weights above `execution.keep_weights_mb` (64) are not kept; `plan` and `sweep` say before the first
cell which, how large, and the value that keeps them. `ablate export OUT/cells/KEY --to DIR` writes
the adapter, with `--merge` a whole model, with tokenizer and a model card; `--retrain` trains a
cell again whose weights were not kept.
"""

ADDING = """\
## How to add a method

A method is one row, a `Method` (`ablate/adapters/method.py`), in the `ROWS` of the module of its
family. Its fields say all that the rest of the project needs to know; no other table lists methods.

1. **A method that PEFT implements.** Add a row to a module of `ablate/adapters/peft/`: the PEFT
   configuration class (`config`), its options, how the rank becomes its capacity (`size`), and what
   it supports (`merges`, `conv1d`, `packs`, `precisions`, ...). `has_delta` and `vectors_only` may
   be functions of the options.
2. **A method with a forward pass of its own.** Make a folder `ablate/adapters/NAME/` with `spec.py`
   (the row, no torch) and `layer.py` (a PEFT configuration and tuner; `additive.py` has the base
   class for linear changes). Add a member to `TunerType` in `tuner_types.py` and end `layer.py`
   with `register(TunerType.NAME, Config, Model)`. List the spec in `registry.py`.
3. **Initial values, penalties, schedules.** Name a function in the row as "module:function":
   `start` sets the initial values, `hooks` returns what acts during training
   (`ablate/training/hooks.py`), `config_from_data` returns settings that depend on the data. What
   acts at certain steps has a function in `spec.py`, `schedule`, which refuses too short a run.
4. **A level.** Add `conf/adapter/NAME.yaml` with name, kind and all options; its first line is the
   description in the table below. A new method has no tuned rate: give `train.lr=` or run
   `ablate tune`.

Then `make test`, and `python -m tests.catalogue > docs/adapters.md`. Every level joins the shared
tests by its file. `tests/unit/test_new_method.py` adds a toy method in
this way: an example to copy.

Outside of this repository: an installed package of yours names its row by an entry point, and the
level lies in your `--config-dir` ([how_to.md](how_to.md)). A run's identity then holds the content
of the file with the row.

```toml
[project.entry-points."ablate.adapters"]
my_method = "my_package.my_method:ROW"
```
"""

LEFT_OUT = """\
## In PEFT, but not here

| method | why |
|---|---|
| X-LoRA, Poly | need trained LoRAs, or the task of every example |
| CPT, Cartridge, multitask prompts | need texts or tasks of their own to start from |
| Adaption prompt | is made for Llama's attention alone |
| Trainable tokens | is `embeddings=trained` for a few tokens |
| OSF | is full tuning in a subspace, meant for a sequence of tasks |
| Lily, PVeRA, FroD, AdaMSS, PEANuT, DEFT, Supertuning, Shadow, BD-LoRA, MonteCLoRA | \
no study that is followed here uses them |
"""


def levels(group: str = "adapter") -> list[str]:
    """Return the names of all levels of a group of `conf`."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def cells(names: Iterable[str], ranks: Sequence[int]) -> list[Cell]:
    """Return a cell for each level at each rank, as a command line would make it."""
    asked = [f"adapter={','.join(names)}", f"rank={','.join(map(str, ranks))}"]
    made = [one.cell for one in grid.cells(expand(asked, loader=config_loader([])))]
    return [cell for cell in made if cell is not None]


def page() -> str:
    """Return the page in Markdown."""
    names = [name for name in levels() if name != "none"]
    made = cells(names, RANKS)
    counted = [_counts(title, made) for title in MODELS]
    about = [
        _overview(made),
        _around(),
        MEMORY,
        DECAY,
        DEVIATIONS,
        _differences(),
        BOTH_ZERO,
        WEIGHTS,
    ]
    return "\n".join([INTRODUCTION, ADDING, *about, *counted, LEFT_OUT])


def _overview(made: list[Cell]) -> str:
    rows = {cell.adapter.name: _about(cell) for cell in made}
    columns = ("level", "what it is", "capacity", "parameters per matrix", "matched", "exceptions")
    return "## Levels\n\n" + _markdown(columns, rows.values())


def _about(cell: Cell) -> tuple[str, ...]:
    row = registry.method(cell.adapter)
    capacity = row.size.setting if row.size else "r" if row.adapts and row.matched else ""
    matched = "" if not row.adapts else "yes" if row.matched else "never"
    name = cell.adapter.name
    what = _first_line("adapter", name)
    return f"`{name}`", what, capacity, row.formula, matched, "; ".join(_notes(cell, row))


def _first_line(group: str, level: str) -> str:
    """Return what a level's file says about it."""
    text = (conf_dir() / group / f"{level}.yaml").read_text(encoding="utf-8")
    return text.splitlines()[0].removeprefix("# ").rstrip(".")


def _notes(cell: Cell, row: Method) -> list[str]:
    """Return the properties of a level that differ from the usual ones."""
    notes = []
    if row.adapts and not start.at_base(cell):
        notes.append("does not start at the base")
    if row.adapts and not row.merges:
        notes.append("cannot be merged")
    if not row.packs:
        notes.append("not packed")
    if not row.conv1d:
        notes.append("not GPT-2")
    inits = [kind for kind in row.inits if kind != "default"]
    optimizers = [kind for kind in row.optimizers if kind not in GENERAL and _takes(cell, kind)]
    quantised = [name for name in row.precisions if name in ("int8", "nf4")]
    if inits:
        notes.append(f"init: {', '.join(inits)}")
    if optimizers:
        notes.append(f"optimizer: {', '.join(optimizers)}")
    if quantised:
        notes.append(f"also {' and '.join(quantised)}")
    if "bf16" not in row.precisions:
        notes.append(f"{' and '.join(row.precisions)} alone")
    return notes


def _takes(cell: Cell, optimizer: str) -> bool:
    """Return whether a level, with its own options, supports an optimizer that its kind does."""
    try:
        asked = replace(cell, optimizer=Optimizer(name=optimizer, kind=optimizer))
        compatibility.check(asked, architecture="LlamaForCausalLM")
    except UserError:
        return False
    return True


def _around() -> str:
    """Return the table of the levels of init and optimizer."""
    rules = {"init": INITS, "optimizer": OPTIMIZERS}
    rows = []
    for group, known in rules.items():
        for level in levels(group):
            tree = yaml.safe_load((conf_dir() / group / f"{level}.yaml").read_text("utf-8"))
            row = known[tree["kind"]]
            notes = [] if getattr(row, "conv1d", True) else ["not GPT-2"]
            precisions = getattr(row, "precisions", PRECISIONS)
            notes += [] if precisions == PRECISIONS else [f"on {', '.join(precisions)}"]
            name = f"`{group}={level}`"
            rows.append((name, _first_line(group, level), "; ".join(notes)))
    heading = "## Initialisations and optimizers\n\nThe table above lists those of each level."
    return f"{heading}\n\n" + _markdown(("level", "what it is", "exceptions"), rows)


def _differences() -> str:
    """Return the table of what levels do otherwise than their authors' code."""
    rows = [(level, *both) for level, both in DIFFERENCES.items()]
    return _markdown(("level", "the authors' code", "here"), rows)


def _counts(title: str, made: list[Cell]) -> str:
    """Return the table of trained parameters, in millions, and of their ratio to LoRA's."""
    shapes, norms = MODELS[title]
    rows: dict[str, list[str]] = {}
    for cell in made:
        budget = registry.budget(cell, shapes, norms=norms)
        if budget:
            name = f"`{cell.adapter.name}`"
            shown = f"{budget.got / 1e6:,.4g} ({budget.ratio:.2f})"
            rows.setdefault(name, [name]).append(shown)
    asked = [f"r = {rank}: {lora_count(rank, shapes) / 1e6:,.4g}" for rank in RANKS]
    heading = (
        f"## Trained parameters of {title}\n\nIn millions; in brackets over LoRA's at the rank."
    )
    return f"{heading}\n\n" + _markdown(("level", *asked), rows.values())


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
