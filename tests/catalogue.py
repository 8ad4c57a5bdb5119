"""docs/adapters.md: every adapter level, its trained parameters and their ratio to LoRA's.

    python -m tests.catalogue > docs/adapters.md

No model is built: the counts are those that a plan shows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import yaml

from ablate.adapters import compatibility, registry
from ablate.adapters.init.spec import INITS
from ablate.adapters.method import PRECISIONS, Method, Shapes, lora_count
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

Unless the last column says otherwise, a level starts at the base's outputs, can be merged into the
base's weights exactly, supports GPT-2's transposed layers, keeps packed examples apart and supports
a base in fp32 or bf16. Random tensors that do not train (bases, positions, masks) follow the cell's
seed. A combination with an initialisation, an optimizer or a base precision that is not listed is
refused: PEFT would ignore it, or fail in the middle of a sweep.
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
   (`ablate/training/hooks.py`), `config_from_data` returns settings that depend on the data.
4. **A level.** Add `conf/adapter/NAME.yaml` with name, kind and all options; its first line is the
   description in the table below. A new method has no tuned rate: give `train.lr=` or run
   `ablate tune`.

Then `make quick`, and `python -m tests.catalogue > docs/adapters.md`. Every level joins the shared
tests by its file. `tests/unit/test_new_method.py` adds a toy method in
this way: an example to copy.
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
    return "\n".join([INTRODUCTION, ADDING, _overview(made), _around(), *counted, LEFT_OUT])


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
    if row.adapts and not row.starts_at_base:
        notes.append("does not start at the base")
    if row.adapts and not row.merges:
        notes.append("cannot be merged")
    if not row.packs:
        notes.append("not packed")
    if not row.conv1d:
        notes.append("not GPT-2")
    inits = [kind for kind in row.inits if kind != "default"]
    optimizers = [kind for kind in row.optimizers if kind != "adamw" and _takes(cell, kind)]
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
