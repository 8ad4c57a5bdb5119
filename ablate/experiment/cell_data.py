"""The rows of a cell as its model's tokenizer reads them."""

from ablate.config.schema import Cell
from ablate.data.tokenise import Tokenised, tokenise
from ablate.data.tokenizer import Tokenizer
from ablate.models.files import resolve


def tokenizer_of(cell: Cell) -> Tokenizer:
    """Return the tokenizer of the cell's base model, under the cell's chat template."""
    return Tokenizer(resolve(cell.model).folder, cell.model.chat_template)


def tokenised(cell: Cell, part: str, first: int | None = None) -> Tokenised:
    """Return the tokenised train, validation or test `part` of the cell's data set.

    Args:
        cell: the cell.
        part: train, validation or test.
        first: the first so many records are enough.

    Raises:
        UserError: the model or the rows cannot be read, or no row is left after truncation.
    """
    train = cell.train
    return tokenise(
        cell.dataset,
        part,
        tokenizer=tokenizer_of(cell),
        max_length=train.max_length,
        boundary=train.boundary,
        first=first,
    )
