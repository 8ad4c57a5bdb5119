"""docs/adapters.md: every adapter level, what it trains and how near it comes to LoRA's budget.

    python -m ablate.commands.catalogue > docs/adapters.md

Nothing is built for it: the counts are those that a plan shows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import yaml

from ablate.adapters import compatibility, registry
from ablate.adapters.method import PRECISIONS, Method, Shapes, lora_count
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


# Linear layers, and the size of the norms: two a layer and one behind the last.
MODELS: dict[str, tuple[Shapes, int]] = {
    "Llama-3.2-1B": (_llama(16, 2048, 512, 8192), 33 * 2048),
    "Llama-2-7B": (_llama(32, 4096, 4096, 11008), 65 * 4096),
}

INTRODUCTION = """\
# Adapter levels

`python -m ablate.commands.catalogue` prints this page. A level is a file of `conf/adapter`; what it
may be told stands there with its defaults. `rank` is a budget: LoRA's r (d + k) trained numbers for
each adapted matrix of d outputs and k inputs. Every method turns it into the capacity setting of
its own that comes nearest to the budget in sum; `plan` and the record show what was asked and got.

A budget counts as *matched* within a tenth. Methods that stay away from it whatever the rank are
*never* matched, so the analysis can leave them out.

If nothing else is said, a level starts at the base's outputs, can be folded into the base's weights
exactly, adapts GPT-2's transposed layers too, keeps packed examples apart and takes a base in fp32
or bf16. What a method draws and never trains, such as random bases, positions and masks, follows
the cell's seed. A combination with an initialisation, an optimizer or a base precision that is not
listed is refused: PEFT would ignore it, or fail in the middle of a sweep.
"""

LEFT_OUT = """\
## Of PEFT, but not here

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
    return "\n".join([INTRODUCTION, _overview(made), _around(), *counted, LEFT_OUT])


def _overview(made: list[Cell]) -> str:
    rows = {cell.adapter.name: _about(cell) for cell in made}
    columns = ("level", "what it is", "capacity", "trains, a matrix", "matched", "apart from that")
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
    """Return what a level does otherwise than most."""
    notes = []
    if row.adapts and not row.starts_at_base:
        notes.append("starts off the base")
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
    """Return whether a level's own options let it take an optimizer that its kind takes."""
    try:
        asked = replace(cell, optimizer=Optimizer(name=optimizer, kind=optimizer))
        compatibility.check(asked, architecture="LlamaForCausalLM")
    except UserError:
        return False
    return True


def _around() -> str:
    """Return the table of the levels of init and optimizer."""
    rules = {"init": compatibility.INITS, "optimizer": compatibility.OPTIMIZERS}
    rows = []
    for group, known in rules.items():
        for level in levels(group):
            tree = yaml.safe_load((conf_dir() / group / f"{level}.yaml").read_text("utf-8"))
            rule = known[tree["kind"]]
            notes = [] if rule.conv1d else ["not GPT-2"]
            notes += [] if rule.precisions == PRECISIONS else [f"on {', '.join(rule.precisions)}"]
            name = f"`{group}={level}`"
            rows.append((name, _first_line(group, level), "; ".join(notes)))
    heading = "## Starts and optimizers\n\nThose that a level takes stand beside it above."
    return f"{heading}\n\n" + _markdown(("level", "what it is", "apart from that"), rows)


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
    heading = f"## Trained parameters of {title}\n\nIn millions, and over LoRA's at the same rank."
    return f"{heading}\n\n" + _markdown(("level", *asked), rows.values())


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell or ' ' for cell in line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
