"""The folder of a base model: in the package, on disk, downloaded from the hub, or made untrained.

Of the hub come whole models and, for an untrained one, another model's tokenizer alone.
"""

import functools
import json
from pathlib import Path
from typing import Any

from ablate import hub
from ablate.config.schema import Model
from ablate.errors import UserError
from ablate.models import untrained
from ablate.paths import check_name

_MICRO = Path(__file__).parents[1] / "micro" / "checkpoints"
SHARD = ".safetensors"
_DOWNLOADED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]


def is_here(model: Model) -> bool:
    """Return whether the files of a base model are on this machine; the network is not asked."""
    if model.source == "untrained":
        return _is_micro(model.path) or untrained.folder_of(model).is_dir()
    return model.source != "hub" or _copy(model.path, model.revision) is not None


def folder_of(model: Model) -> Path:
    """Return the folder of a base model; what is of the hub is downloaded once.

    Raises:
        UserError: there is no such model.
    """
    if model.source == "hub":
        return _download(model.path, model.revision)
    if model.source == "untrained":
        if not untrained.folder_of(model).is_dir():
            of = _MICRO / model.path if _is_micro(model.path) else _tokenizer(model)
            return untrained.made(model, of)
        return untrained.folder_of(model)
    if model.source == "micro":
        folder = _MICRO / model.path
        if not folder.is_dir():
            found = ", ".join(sorted(path.name for path in _MICRO.glob("*") if path.is_dir()))
            raise UserError(
                f"model.path={model.path}: not one of {found}; for a folder of your own write "
                "model=local beside it, for the hub's models model=hub"
            )
        return folder
    check_name("model.path", model.path)
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        kind = "a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"model.path={model.path}: {kind}")
    return folder


def _is_micro(name: str) -> bool:
    return "/" not in name and (_MICRO / name).is_dir()


def _tokenizer(model: Model) -> Path:
    """Return a folder with the tokenizer of a model of the hub; its weights are not downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    asked = f"model.path={model.path}"
    if "/" not in model.path:
        raise UserError(f"{asked}: a tokenizer is that of OWNER/NAME on the hub, or of micro_0")
    revision, names = model.revision, list(untrained.TOKENIZER)
    try:
        folder = Path(
            snapshot_download(
                model.path, revision=revision, allow_patterns=names, local_files_only=True
            )
        )
        if (folder / untrained.TOKENIZER[0]).is_file():
            return folder
    except HFValidationError as error:
        raise UserError(f"{asked}: no hub id; write OWNER/NAME") from error
    except LocalEntryNotFoundError:
        pass
    if hub.unreachable():
        raise hub.absent(asked)
    try:
        return Path(snapshot_download(model.path, revision=revision, allow_patterns=names))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{asked}: cannot be downloaded ({reason})") from error


@functools.cache
def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = _copy(repository, revision)
    if found is not None:
        return found
    asked = repository + (f" at revision {revision}" if revision else "")
    if hub.unreachable():
        raise hub.absent(f"model.path={asked}")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model.path={asked}: cannot be downloaded ({reason})") from error


def _copy(repository: str, revision: str | None) -> Path | None:
    """Return the folder of an earlier, complete download; the network is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=_DOWNLOADED, local_files_only=True
        )
        weight_files(Path(folder))
    except HFValidationError as error:
        raise UserError(f"model.path={repository}: no hub id; write OWNER/NAME") from error
    except (LocalEntryNotFoundError, UserError):
        return None
    return Path(folder)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights of the model in `folder`.

    Raises:
        UserError: there are none, or their index is broken.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        placed = json_table(index).get("weight_map")
        if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
            raise UserError(f"model: {index} has no weight_map of tensors and files")
        names = sorted(set(placed.values()))
        for name in names:
            if Path(name).name != name or Path(name).suffix != SHARD:
                raise UserError(f"model: {index} names {name}, which is no {SHARD} file beside it")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(f"model: {index} names {missing[0]}, which is not there")
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    old = " (pytorch_model.bin alone is not read: save it as safetensors)"
    has_old = any(folder.glob("pytorch_model*.bin"))
    raise UserError(f"model: no model.safetensors in {folder}{old if has_old else ''}")


def json_table(path: Path) -> dict[str, Any]:
    """Return the settings in a file of JSON.

    Raises:
        UserError: it holds no table of settings.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"model: {path} is not valid JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"model: {path} is not a table of settings")
    return content
