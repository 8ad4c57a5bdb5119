"""The memory of a GPU that training takes, by what takes it: arithmetic from sizes. No torch.

    weights       the base by base_precision, an adapter's own in fp32
    copies        16-bit copies of fp32 matrices, which autocast computes with
    gradients     of each trained parameter, as precise as it is
    moments       of the optimizer, by its row (`adapters.optimizers`); paged ones can leave
    masters       fp32 copies of trained 16-bit weights
    activations   what the backward pass needs of norms, matrices and activation functions
    attention     queries, keys, values and outputs; no mask is made
    logits        of the targets with a weight: log-softmax and two gradients of its size, or what
                  `training.head` takes for a tile of them where they are many
    reference     of `regulariser.kl`: a copy of what trains of the base, and the base's predictions
    step          gradients of the masters, where that is more than a forward pass takes
    gathered      of a model in parts: two blocks as a whole, and what is in no block

A cell on several devices (`execution.devices`) has on each its share of a step's rows. With
`execution.sharding=none` all else is there as a whole; with full weights, gradients, moments and
masters are divided by the number of devices.

Cells that train side by side (`execution.lanes`) share the base and have all else each.

An offloaded optimizer's moments and masters are not on the GPU. With gradient checkpointing the
input of every block is kept, and all of one block. The largest forward pass is that of the longest
rows. Scoring has a module of its own (`experiment.scoring_memory`). Not counted: what CUDA itself
takes, and what lies between allocations (`gpu_fit.SPARE`).

Letters: T tokens of a micro-batch, K of them targets with a weight, V vocabulary, H width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ablate.adapters import registry
from ablate.adapters.optimizers import optimizer_of
from ablate.config.schema import Cell
from ablate.data.tokenise import Summary
from ablate.experiment.design import Named
from ablate.experiment.lanes import obstacle
from ablate.models.files import ModelFiles
from ablate.objective import objective_of, supervised

STORED = {"bf16": 2.0, "int8": 1.0, "nf4": 0.5}  # bytes of a number in a matrix of a block
EXACT = 4  # bytes of a number in fp32
HALF = 2
TILED_FROM, TILE = 2**24, 2**26  # as in `training.predict` and `training.head`, on a GPU
FEWEST_ROWS = 256
# Architectures with LayerNorm; all others have RMSNorm, of which autograd keeps the parts.
LAYER_NORM = ("GPT", "OPT", "Bloom", "Falcon")
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "wo")  # of attention: names of its last matrix


@dataclass(frozen=True, slots=True)
class Pass:
    """The largest forward pass of a run."""

    rows: int
    tokens: float
    targets: float  # with a weight
    packed: bool


def gpu_parts(named: Named, *, rows: int | None = None) -> dict[str, float]:
    """Return the bytes of a GPU that training a run takes, by what takes them; none of the base.

    Args:
        named: the run.
        rows: examples of a micro-batch, instead of its setting.
    """
    cell, files = named.cell, named.identity.files
    fixed = _fixed(cell, files)
    if cell.is_base:
        return {}
    work = largest_pass(cell, named.identity.data, rows=rows)
    forward = _forward(cell, files, work)
    step = fixed["masters"]  # as many gradients in fp32
    moving = {"step": step} if step > sum(forward.values()) else forward
    return {name: size for name, size in (fixed | moving).items() if size}


def side_by_side(cell: Cell) -> int:
    """Return how many cells train on one copy of the base, if a grid has as many that can."""
    alone = cell.is_base or cell.execution.lanes == 1 or obstacle(cell)
    return 1 if alone else cell.execution.lanes


def largest_pass(cell: Cell, data: Summary, *, rows: int | None = None) -> Pass:
    """Return the forward pass with most tokens: of rows as long as the longest, if it is padded."""
    train, run = cell.train, cell.execution
    longest = min(data.max_length, train.max_length)
    if train.batch_unit == "tokens":
        all_tokens = float(train.batch_size)
        all_rows = max(1, round(train.batch_size / data.mean_length))
    else:
        all_tokens, all_rows = train.batch_size * data.mean_length, train.batch_size
    share = math.ceil(all_rows / run.devices)
    all_tokens, all_rows = all_tokens * share / all_rows, share
    asked = run.micro_batch_size if isinstance(run.micro_batch_size, int) else all_rows
    rows = min(rows or asked, all_rows)
    tokens, packed = float(rows * longest), is_packed(cell)
    if packed or (rows == all_rows and train.batch_unit == "tokens"):
        tokens = min(tokens, all_tokens)
    if (most := run.micro_batch_tokens) is not None:
        tokens = min(tokens, max(most, longest))
    weighed = supervised(objective_of(cell), data) / (sum(data.counts.values()) or 1)
    return Pass(rows, tokens, tokens * min(1.0, weighed), packed)


def is_packed(cell: Cell) -> bool:
    """Return whether a GPU packs the rows of a cell, as `training.layout` chooses."""
    automatic = cell.execution.layout == "auto" and cell.loss.scope != "microbatch"
    fast = computed_in(cell) == HALF and registry.method(cell.adapter).packs
    return cell.execution.layout == "packed" or (automatic and fast)


def computed_in(cell: Cell) -> int:
    """Return the bytes of a number that matrices are multiplied in."""
    return HALF if "bf16" in (cell.train.precision, cell.base_precision) else EXACT


def _carried_in(cell: Cell) -> int:
    """Return the bytes of a number between two blocks: embeddings and norms have the base's."""
    return HALF if cell.base_precision == "bf16" else EXACT


def weights_held(cell: Cell, files: ModelFiles) -> float:
    """Return the bytes of a base and of what is trained of it or beside it, of all lanes."""
    cells = side_by_side(cell)
    base = registry.trained_of_base(cell, files)
    own = cells * (registry.trainable_parameters(cell, files) - base)
    linear = sum(d * k for d, k in files.linear_shapes.values())
    held = STORED.get(cell.base_precision, EXACT) * linear  # by the base
    held += (cells - 1) * EXACT * base  # trained ones of further cells, which have 32 bits
    return held + _carried_in(cell) * (files.parameters - linear) + EXACT * own


def _fixed(cell: Cell, files: ModelFiles) -> dict[str, float]:
    """Return what is there from the first step to the last, on one device."""
    whole = _whole(cell, files)
    if cell.execution.sharding == "none":
        return whole
    linear = sum(d * k for d, k in files.linear_shapes.values())
    block, ends = linear / max(1, files.blocks), files.parameters - linear
    gathered = STORED.get(cell.base_precision, EXACT) * 2 * block + _carried_in(cell) * ends
    parts = {name: size / cell.execution.devices for name, size in whole.items()}
    return parts | {"gathered": gathered}


def _whole(cell: Cell, files: ModelFiles) -> dict[str, float]:
    """Return what is there from the first step to the last of a whole model."""
    cells = side_by_side(cell)
    base = registry.trained_of_base(cell, files)
    own = cells * (registry.trainable_parameters(cell, files) - base)
    base *= cells
    row = optimizer_of(cell.optimizer)[0]
    away = cell.execution.offload_optimizer
    half = cell.base_precision == "bf16"
    on_gpu = own if away else own + base
    return {
        "weights": weights_held(cell, files),
        "gradients": float((HALF if half else EXACT) * base + EXACT * own),
        "moments": 0.0 if cell.optimizer.kind.startswith("paged_") else row.state * on_gpu,
        "masters": float(EXACT * base * (half and row.rounding == "master" and not away)),
    }


def _forward(cell: Cell, files: ModelFiles, work: Pass) -> dict[str, float]:
    """Return what a forward pass leaves for its backward pass."""
    blocks = _blocks(files)
    inner = [_block(cell, files, own, packed=work.packed) for own in blocks]
    activations, attention = (sum(one[i] for one in inner) for i in (0, 1))
    width, carried = files.width, _carried_in(cell)
    if cell.execution.gradient_checkpointing:
        largest = max(inner, key=sum)
        activations, attention = largest[0] + len(blocks) * width * carried, largest[1]
    activations += _norm(cell, files)
    cells = side_by_side(cell)
    tokens, targets = cells * work.tokens, cells * work.targets
    whole = cells if registry.method(cell.adapter).trains_base else 1
    return {
        "copies": whole * _copies(cell, files, blocks),
        "activations": tokens * activations + targets * width * computed_in(cell),
        "attention": tokens * attention,
        "logits": _logits(cell, files, targets),
        "reference": _reference(cell, files, targets),
    }


def _reference(cell: Cell, files: ModelFiles, targets: float) -> float:
    """Return what `regulariser.kl` takes: autograd keeps the log-softmax of both predictions."""
    if not cell.regulariser.kl:
        return 0.0
    copied = _carried_in(cell) * registry.trained_of_base(cell, files)
    if targets * files.vocab_size < TILED_FROM:
        return copied + targets * files.vocab_size * 2 * EXACT
    return copied + _logits(cell, files, targets)


def _blocks(files: ModelFiles) -> list[dict[str, tuple[int, int]]]:
    """Return the matrices of each block, by name."""
    found: dict[int, dict[str, tuple[int, int]]] = {}
    for name, shape in files.linear_shapes.items():
        number = next(int(word) for word in name.split(".") if word.isdigit())
        found.setdefault(number, {})[name] = shape
    return list(found.values())


def _norm(cell: Cell, files: ModelFiles) -> int:
    """Return the bytes a token of one normalisation: it is computed in fp32."""
    trains = registry.method(cell.adapter).trains_base or registry.method(cell.adapter).trains_norms
    twice = trains and not files.architecture.startswith(LAYER_NORM)
    return files.width * (EXACT + (_carried_in(cell) if twice else 0))


def _block(
    cell: Cell, files: ModelFiles, shapes: Mapping[str, tuple[int, int]], *, packed: bool
) -> tuple[float, float]:
    """Return the bytes a token that a block keeps: without attention, and of attention."""
    number, same = computed_in(cell), computed_in(cell) == _carried_in(cell)
    touched = _touched(cell, files) & shapes.keys()
    parts = {part: _sides(shapes, part) for part in ("attention", "mlp")}
    kept = float(_norms_of(files) * _norm(cell, files))
    for into, _ in parts.values():  # matrices that read the norm's output, each its own 16-bit copy
        readers = len(into.keys() & touched)
        kept += number * files.width * (min(readers, 1) if same else readers)
    into, out = parts["mlp"]
    inner = sum(k for _, k in out.values())
    gated = sum(d for d, _ in into.values()) > inner
    kept += number * inner * ((3 if gated else 1) + bool(out.keys() & touched))
    kept += number * len(touched) * (cell.rank if registry.method(cell.adapter).adapts else 0)
    into, out = parts["attention"]
    queries = sum(k for _, k in out.values())
    others = max(0, sum(d for d, _ in into.values()) - queries)
    attention = 2 * queries + others
    if packed and number == EXACT:  # run by run of equal lengths, keys and values for every head
        attention = 5 * queries
    return kept, float(number * attention)


def _sides(
    shapes: Mapping[str, tuple[int, int]], part: str
) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    """Return the matrices of a part of a block that read its input, and those that end it."""
    words = registry.PARTS["attention"]
    own = {n: s for n, s in shapes.items() if any(w in n for w in words) == (part == "attention")}
    if part == "attention":
        out = {n: s for n, s in own.items() if n.endswith(OUTPUTS)}
    else:
        out = {n: s for n, s in own.items() if s[0] < s[1]}
    return {n: s for n, s in own.items() if n not in out}, out


def _touched(cell: Cell, files: ModelFiles) -> set[str]:
    """Return the matrices whose input the backward pass needs."""
    row = registry.method(cell.adapter)
    if row.trains_base:
        return set(files.linear_shapes)
    return set(registry.adapted(cell, files.linear_shapes)) if row.adapts and row.placed else set()


def _norms_of(files: ModelFiles) -> int:
    """Return how many normalisations of the width of the model a block has."""
    vectors = 2 if files.architecture.startswith(LAYER_NORM) else 1
    return max(1, round(files.norm_parameters / (files.width * files.blocks * vectors)))


def _copies(cell: Cell, files: ModelFiles, blocks: list[dict[str, tuple[int, int]]]) -> float:
    """Return the bytes of the 16-bit copies of matrices that autocast makes of an fp32 base."""
    if cell.base_precision != "fp32" or computed_in(cell) == EXACT:
        return 0.0
    sizes = [sum(d * k for d, k in own.values()) for own in blocks]
    frozen = not registry.method(cell.adapter).trains_base
    one = cell.execution.gradient_checkpointing and frozen  # copies of what trains are cached
    return float(HALF * ((max(sizes) if one else sum(sizes)) + files.vocab_size * files.width))


def _logits(cell: Cell, files: ModelFiles, targets: float) -> float:
    number, vocabulary = computed_in(cell), files.vocab_size
    if targets * vocabulary < TILED_FROM:  # an fp32 copy where they have 16 bits
        return targets * vocabulary * (3 * EXACT + (number if number == HALF else 0))
    tiles = math.ceil(targets / max(FEWEST_ROWS, TILE // vocabulary))
    tile = targets / tiles * vocabulary * number  # the gradient takes the place of the logits
    trains = cell.embeddings == "trained"
    return tile + number * files.width * (targets + vocabulary * trains)
