"""A base model as files: its folder, a hash of its content and the shapes of its layers.

Everything here comes from config.json, tokenizer.json and the headers of the safetensors files, so
that a plan knows the capacity of every adapter without loading a model.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablate.config.schema import Model
from ablate.errors import UserError, brief
from ablate.models.folders import folder_of, json_table, weight_files
from ablate.paths import cache_dir
from ablate.results.files import sha256

_HASHED = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# Encoders whose architecture names look like those of causal language models.
_ENCODERS = ("bert", "roberta", "electra", "xlnet", "deberta", "mpnet")
_TRANSPOSED = ("gpt2",)  # layers of transformers' Conv1D, which stores (in, out)
# Older checkpoints store these buffers; current transformers computes them.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
# Of these, which also see images, the text part is the model; by the name of that part's class.
TEXT_PARTS = {"gemma3": "Gemma3ForCausalLM"}
TEXT_KEYS = {r"^(language_model\.model|model\.language_model)\.": "model."}  # name -> part's name
NO_LIMIT = 2**31 - 1  # position embeddings that are computed have no last position

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A base model on disk: the facts that its files give without loading it."""

    folder: Path
    content_hash: str  # weights, configuration and tokenizer; not the folder's name
    linear_shapes: dict[str, tuple[int, int]]  # module name -> (out, in); no embedding, no head
    parameters: int  # a tied matrix counts once, as it is stored
    embedding_parameters: int  # of the token embedding, and of the head where it is not tied
    norm_parameters: int  # weights and biases of the normalisation layers
    vocab_size: int
    max_positions: int
    architecture: str
    drops: bool = False  # whether its configuration asks for dropout while it trains
    # Numbers that stand for a token between two blocks: the most frequent input size.
    width: int = field(init=False)
    blocks: int = field(init=False)  # of the decoder

    def __post_init__(self) -> None:
        """Count once what plans ask for thousands of times."""
        inputs = [k for _, k in self.linear_shapes.values()]
        object.__setattr__(self, "width", statistics.mode(inputs) if inputs else 0)
        numbers = {name.split(".")[_place(name)] for name in self.linear_shapes}
        object.__setattr__(self, "blocks", len(numbers))


def _place(name: str) -> int:
    """Return the place of a block's number among the words of a module's name."""
    return next(i for i, word in enumerate(name.split(".")) if word.isdigit())


_known: dict[tuple[Any, ...], ModelFiles] = {}


def resolve(model: Model) -> ModelFiles:
    """Return the files of a base model; those of the hub are downloaded once.

    Raises:
        UserError: there is no such model, a file is missing or broken, or it is no causal
            language model.
    """
    folder = folder_of(model)
    weights = weight_files(folder)
    hashed = [folder / name for name in _HASHED if (folder / name).is_file()]
    signature = tuple(_stamp(path) for path in (*hashed, *weights))
    if signature not in _known:
        _known[signature] = _read(folder, weights, hashed)
    return _known[signature]


def tokenizer_file(folder: Path) -> Path:
    """Return the path of the fast tokenizer of the model in `folder`."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"model: no tokenizer.json in {folder}; save the model's fast tokenizer")
    return path


# -- its facts -------------------------------------------------------------------------------


def _read(folder: Path, weights: list[Path], hashed: list[Path]) -> ModelFiles:
    tokenizer_file(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"model: no config.json in {folder}")
    settings = json_table(path)
    tensors: dict[str, Shape] = {}
    for file in weights:
        tensors |= tensor_shapes(file)
    if settings.get("model_type") in TEXT_PARTS:
        settings, tensors = _text_part(settings, tensors)
    architecture = _architecture(settings, folder)
    _check_fit(tensors, settings, str(path))
    return ModelFiles(
        folder=folder,
        content_hash=_combined([*hashed, *weights]),
        architecture=architecture,
        **sizes(tensors, settings, place=str(path)),
    )


def _check_fit(tensors: Mapping[str, Shape], settings: Mapping[str, Any], place: str) -> None:
    """Check that a configuration is that of the weights: blocks, width and heads.

    Raises:
        UserError: it is not. transformers would draw what is missing at random.
    """
    numbers = (next((p for p in name.split(".") if p.isdigit()), None) for name in tensors)
    blocks = len({int(number) for number in numbers if number is not None})
    for name in ("num_hidden_layers", "n_layer", "n_layers"):
        if name in settings and blocks and settings[name] != blocks:
            said = brief(settings[name])
            raise UserError(f"model: {place}: {name}={said}: the weights have {blocks} blocks")
    known = {size for shape in tensors.values() for size in shape}
    for name in ("hidden_size", "n_embd", "d_model"):
        if isinstance(width := settings.get(name), int) and width not in known:
            raise UserError(f"model: {place}: {name}={brief(width)}: no weight has this size")
    heads = settings.get("num_attention_heads", settings.get("n_head"))
    if heads is None:
        return
    queries = {shape[0] for name, shape in tensors.items() if name.endswith("q_proj.weight")}
    size = settings.get("head_dim") or 1
    whole = isinstance(heads, int) and heads > 0 and isinstance(size, int)
    if not whole or any(rows % (heads * size) for rows in queries):
        said = f"num_attention_heads={brief(heads)}"
        raise UserError(
            f"model: {place}: {said}: the query projections have {max(queries, default=0)} rows"
        )


def _text_part(
    settings: dict[str, Any], tensors: dict[str, Shape]
) -> tuple[dict[str, Any], dict[str, Shape]]:
    """Return the configuration and the tensors of the text part of a model that also sees."""
    ((pattern, start),) = TEXT_KEYS.items()
    own = {re.sub(pattern, start, n): s for n, s in tensors.items() if re.match(pattern, n)}
    rows = {"vocab_size": own[f"{start}embed_tokens.weight"][0]}  # often left to its default
    architecture = {"architectures": [TEXT_PARTS[settings["model_type"]]]}
    return {**rows, **settings.get("text_config", {}), **architecture}, own


def has_text_part(folder: Path) -> bool:
    """Return whether the model in `folder` is used by its text part alone."""
    return json_table(folder / "config.json").get("model_type") in TEXT_PARTS


def sizes(
    tensors: Mapping[str, Shape], settings: Mapping[str, Any], *, place: str
) -> dict[str, Any]:
    """Return the sizes of a model, fields of `ModelFiles`, from the shapes of its tensors.

    Args:
        tensors: name -> shape; a tied matrix once.
        settings: its configuration.
        place: where that stands, for messages.
    """
    shapes = {k: v for k, v in tensors.items() if not k.endswith(_BUFFERS)}
    vocabulary = _number(settings, ("vocab_size",), place)
    positions = ("max_position_embeddings", "n_positions", "n_ctx")
    return {
        "linear_shapes": linear_shapes(shapes, str(settings.get("model_type"))),
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "embedding_parameters": _vocabulary_rows(shapes, vocabulary),
        "norm_parameters": _norms(shapes),
        "vocab_size": vocabulary,
        "max_positions": _number(settings, positions, place, default=NO_LIMIT),
        "drops": any(_is_dropout(name, value) for name, value in settings.items()),
    }


def _is_dropout(name: str, value: object) -> bool:
    """Return whether a setting is a share of numbers that a causal model drops in training."""
    other = name.startswith(("classifier", "summary"))  # heads for other tasks
    given = isinstance(value, float | int) and not isinstance(value, bool) and value > 0
    return given and not other and ("dropout" in name or "pdrop" in name)


def _architecture(settings: dict[str, Any], folder: Path) -> str:
    names = settings.get("architectures")
    if not isinstance(names, list) or not names:
        raise UserError(f"model: config.json in {folder} names no architecture")
    name, kind = str(names[0]), str(settings.get("model_type", ""))
    encoder = any(word in kind.lower() for word in _ENCODERS) and not settings.get("is_decoder")
    if settings.get("is_encoder_decoder") or "ConditionalGeneration" in name:
        raise UserError(f"model: {folder} is an encoder-decoder ({name}); only causal LMs are run")
    if encoder or "MaskedLM" in name:
        raise UserError(f"model: {folder} is an encoder ({name}); only causal LMs are run")
    if not name.endswith(("ForCausalLM", "LMHeadModel")):
        raise UserError(f"model: {folder} is no causal language model ({name})")
    return name


def tensor_shapes(path: Path) -> dict[str, Shape]:
    """Return name -> shape of every tensor in a safetensors file, read from its header only."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < min(100_000_000, path.stat().st_size):
            raise UserError(f"model: {path} is not a safetensors file")
        text = file.read(length)
    try:
        header = json.loads(text)
        shapes = {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}
        if not all(type(n) is int and n >= 0 for shape in shapes.values() for n in shape):
            raise TypeError("a shape is whole numbers")
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        if max(ends, default=0) != path.stat().st_size - 8 - length:
            raise UserError(f"model: {path} is cut off: its header names other bytes than it has")
        return shapes
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"model: {path} is not a safetensors file") from error


def linear_shapes(shapes: dict[str, Shape], model_type: str) -> dict[str, tuple[int, int]]:
    """Return (out, in) of every linear layer of the decoder's blocks, by module name.

    A block's name has a number in it (`model.layers.0`, `transformer.h.0`); embeddings and the
    head stand outside the blocks, norms and biases have one dimension.
    """
    found = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module == name or len(shape) != 2 or not any(p.isdigit() for p in name.split(".")):
            continue
        out, into = shape[::-1] if model_type in _TRANSPOSED else shape
        found[_in_full(module)] = (out, into)
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _vocabulary_rows(shapes: dict[str, Shape], vocabulary: int) -> int:
    """Return the size of the matrices outside the blocks that have one row per token."""
    blocks = [name for name in shapes if any(part.isdigit() for part in name.split("."))]
    ends = [shape for name, shape in shapes.items() if name not in blocks]
    return sum(math.prod(shape) for shape in ends if len(shape) == 2 and shape[0] == vocabulary)


def _norms(shapes: dict[str, Shape]) -> int:
    """Return the size of the normalisation layers: the modules whose weight is a vector."""
    weights = [name.removesuffix(".weight") for name in shapes if name.endswith(".weight")]
    norms = [module for module in weights if len(shapes[f"{module}.weight"]) == 1]
    parts = [f"{module}.{part}" for module in norms for part in ("weight", "bias")]
    return sum(math.prod(shapes[part]) for part in parts if part in shapes)


def _in_full(module: str) -> str:
    """Return a module's name in the causal LM; some checkpoints omit the model's prefix."""
    for start, prefix in (("h.", "transformer."), ("layers.", "model.")):
        if module.startswith(start):
            return prefix + module
    return module


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdigit() else (-1, p) for p in name.split(".")]


def _number(
    settings: Mapping[str, Any], names: Iterable[str], place: str, *, default: int | None = None
) -> int:
    found = [settings[name] for name in names if settings.get(name) is not None]
    if found and isinstance(found[0], int) and 0 < found[0] <= NO_LIMIT:
        return found[0]
    if found:
        name = next(name for name in names if settings.get(name) is not None)
        raise UserError(f"model: {place}: {name}={brief(found[0])}: must be a whole number above 0")
    if default is None:
        raise UserError(f"model: {place} gives no {next(iter(names))}")
    return default


# -- its content ------------------------------------------------------------------------------


def _combined(paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name}\n{file_hash(path)}\n".encode())
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's content, cached by path, size and modification time."""
    stamp = hashlib.sha256(repr(_stamp(path)).encode()).hexdigest()[:32]
    stored = cache_dir() / "hashes" / stamp
    with contextlib.suppress(OSError):
        known = stored.read_text()
        if len(known) == 64:
            return known
    found = sha256(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        stored.parent.mkdir(parents=True, exist_ok=True)
        draft = stored.with_name(f"{stamp}.{os.getpid()}")
        draft.write_text(found)
        draft.replace(stored)
    return found


def _stamp(path: Path) -> tuple[str, int, int]:
    info = path.stat()
    return str(path.resolve()), info.st_size, info.st_mtime_ns
