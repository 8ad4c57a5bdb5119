"""The memory of a GPU that scoring a run takes, by what takes it: arithmetic from sizes. No torch.

    weights       of the base and of an adapter; beside them a 16-bit copy of an fp32 base where
                  `evaluate.precision` is bf16
    activations   the largest block of a forward pass without gradients: nothing is kept
    logits        of the scored tokens, a tile of them twice in fp32

A forward pass has `execution.eval_batch_size` rows and `execution.eval_batch_tokens` tokens at
most; where memory runs out it is halved, down to a row. Not counted: keys and values while answers
are generated, and what CUDA itself takes (`gpu_fit.SPARE`).
"""

from ablate.config.schema import Cell
from ablate.data.tokenise import Summary
from ablate.experiment.design import Named
from ablate.experiment.gpu_memory import EXACT, HALF, weights_held
from ablate.experiment.gpu_pace import scored_in
from ablate.models.files import ModelFiles

TILE = 2**26  # as in `evaluate.passes`
ROWS_OF_AN_ITEM = 2  # an item is about as long as two rows, as in `pace.eval_flops`
RESIDUALS = 4  # vectors of the model's width that a block has at once


def scoring_parts(named: Named, *, rows: int | None = None) -> dict[str, float]:
    """Return the bytes of a GPU that scoring a run takes, by what takes them; none without scores.

    Args:
        named: the run.
        rows: of a forward pass, instead of its setting.
    """
    cell, files = named.cell, named.identity.files
    if not named.identity.asked:
        return {}
    number = scored_in(cell)
    tokens = largest_scoring(cell, named.identity.data, rows=rows)
    weights = weights_held(cell, files)
    if number == HALF and cell.base_precision == "fp32":
        weights += HALF * files.parameters
    tile = min(tokens * files.vocab_size, TILE)
    return {
        "weights": weights,
        "activations": tokens * number * _of_a_token(files),
        "logits": tile * 2.0 * EXACT + tile * number,
    }


def largest_scoring(cell: Cell, data: Summary, *, rows: int | None = None) -> float:
    """Return the tokens of the largest forward pass of scoring; a row is never split."""
    longest = ROWS_OF_AN_ITEM * min(data.max_length, cell.train.max_length)
    asked = rows or cell.execution.eval_batch_size
    return float(max(longest, min(asked * longest, cell.execution.eval_batch_tokens)))


def _of_a_token(files: ModelFiles) -> int:
    """Return the numbers a token that the widest part of a block has at once."""
    inner = max((max(shape) for shape in files.linear_shapes.values()), default=files.width)
    return 3 * inner + RESIDUALS * files.width
