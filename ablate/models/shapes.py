"""The sizes of a base model from `model.shape`, the values of its configuration, without its files.

transformers builds the model from those values on the meta device, where tensors have shapes and no
content. What it builds for the levels in conf/model is stored beside this module, for torch takes
longer to import than a plan to make; for any other shape it is kept in the cache.

    python -m ablate.models.shapes    # remakes shapes.json
"""

import functools
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ablate.config.schema import Model
from ablate.errors import UserError
from ablate.models.files import ModelFiles, Shape, sizes
from ablate.paths import cache_dir, conf_dir

STORED = Path(__file__).with_name("shapes.json")
NOT_HERE = "not on this machine"


def from_shape(model: Model) -> ModelFiles:
    """Return what the files of `model` would say, from its `model.shape`.

    The folder does not exist, and the content hash stands for the name and the revision alone.

    Raises:
        UserError: transformers makes no causal language model of these values.
    """
    built = _built(model.shape)
    content = json.dumps([NOT_HERE, model.path, model.revision, dict(model.shape)], sort_keys=True)
    return ModelFiles(
        folder=Path(NOT_HERE, model.path),
        content_hash=hashlib.sha256(content.encode()).hexdigest(),
        architecture=built["architecture"],
        **sizes(_unpacked(built["tensors"]), model.shape, place="model.shape"),
    )


def _built(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture and the tensors of a shape, as stored, as cached or newly built."""
    key = _key(shape)
    if key in _stored():
        return dict(_stored()[key])
    file = cache_dir() / "shapes" / f"{key}.json"
    if not file.is_file():
        built = build(shape)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(built))
    return dict(json.loads(file.read_text()))


def _key(shape: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(shape), sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _stored() -> dict[str, Any]:
    return dict(json.loads(STORED.read_text()))


def build(shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture and the packed tensors of the model that transformers builds.

    Raises:
        UserError: transformers makes no causal language model of these values.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = dict(shape)
    try:
        with torch.device("meta"):
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
            model = AutoModelForCausalLM.from_config(config)
    except (KeyError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model.shape: no causal language model ({first})") from None
    tensors = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    return {"architecture": type(model).__name__, "tensors": _packed(tensors)}


def _packed(tensors: Mapping[str, Shape]) -> dict[str, list[Any]]:
    """Return pattern -> [shape, copies]: a tensor that all of n blocks have is stored once."""
    blocks: dict[str, dict[int, Shape]] = defaultdict(dict)
    for name, shape in tensors.items():
        number = re.search(r"\.(\d+)\.", name)
        if number:
            blocks[_pattern(name)][int(number[1])] = shape
    alike = {
        pattern: len(own)
        for pattern, own in blocks.items()
        if sorted(own) == list(range(len(own))) and len(set(own.values())) == 1
    }
    found: dict[str, list[Any]] = {}
    for name, shape in tensors.items():
        pattern = _pattern(name)
        found[pattern if pattern in alike else name] = [list(shape), alike.get(pattern, 0)]
    return found


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+\.", ".{}.", name, count=1)


def _unpacked(packed: Mapping[str, list[Any]]) -> dict[str, Shape]:
    return {
        name.replace("{}", str(number), 1): tuple(shape)
        for name, (shape, copies) in packed.items()
        for number in range(copies or 1)
    }


def main() -> None:
    """Write the shapes of all levels in conf/model."""
    lines = []
    for file in sorted((conf_dir() / "model").glob("*.yaml")):
        shape = yaml.safe_load(file.read_text(encoding="utf-8")).get("shape")
        if shape:
            lines.append(f'"{_key(shape)}": {json.dumps(build(shape))}')
    STORED.write_text("{\n" + ",\n".join(dict.fromkeys(lines)) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
