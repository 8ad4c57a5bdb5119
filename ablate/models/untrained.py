"""Base models that nothing was trained of: random weights of `model.shape`, another's tokenizer.

What is pretrained from a random start, under an adapter as well (MoRA, arXiv 2405.12130, section
4.4; ReLoRA, 2307.05695), needs a base like any other. It is made once, from a fixed stream, and
kept in the cache in the hub's format; its weights are part of the identity of what trains on it.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from ablate.config.schema import Model
from ablate.errors import UserError
from ablate.paths import cache_dir

SEED = 0
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def folder_of(model: Model) -> Path:
    """Return where the model is, or will be made; its name says what it is made of."""
    made_of = json.dumps([model.path, model.revision, dict(model.shape), SEED], sort_keys=True)
    return cache_dir() / "untrained" / hashlib.sha256(made_of.encode()).hexdigest()[:16]


def made(model: Model, tokenizer: Path) -> Path:
    """Return the folder of an untrained model, which is made where it is not there yet.

    Args:
        model: its shape says which.
        tokenizer: the folder whose tokenizer it takes.

    Raises:
        UserError: transformers makes no causal language model of this shape.
    """
    place = folder_of(model)
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=place.parent, prefix=".draft-"))
    try:
        _draw(model, draft)
        for name in TOKENIZER:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, draft / name)
        draft.chmod(0o755)
        try:
            draft.rename(place)
        except OSError:  # another process was first; equal names mean equal files
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _draw(model: Model, folder: Path) -> None:
    """Write configuration and weights, drawn as transformers draws those of this architecture."""
    from transformers import AutoConfig  # torch

    from ablate.models.initial import initialise, quiet
    from ablate.streams import Streams

    settings = dict(model.shape)
    try:
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with quiet():
            initialise(config, streams=Streams(SEED)).save_pretrained(folder)
    except (KeyError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model.shape: no causal language model ({first})") from None
