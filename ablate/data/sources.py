"""Raw records of a data set: from the micro world, the hub, a file or a folder.

A record is a place ("line 7" of a text file, "row 7" of a table, counted from 1) and a dictionary.
Nothing here knows what the columns mean; that is `ablate.data.rows`.
"""

import csv
import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate import hub
from ablate.config.schema import Dataset
from ablate.errors import UserError, nearest, unknown
from ablate.micro import instructions
from ablate.paths import check_file, check_name
from ablate.results.spreadsheet import separator_of

EXTENSIONS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")
TABLE_ROWS = 10_000  # of an Arrow table that are Python objects at once
_SPACE = " \t\n\r"  # what JSON skips
_SPACES = frozenset(_SPACE)


@dataclass(frozen=True, slots=True)
class Record:
    """One raw row and where it stands, for error messages."""

    place: str
    fields: Mapping[str, Any]


def records(dataset: Dataset, part: str) -> Iterator[Record]:
    """Yield all records of `dataset`; `part` matters to the micro world only.

    Raises:
        UserError: nothing there, not readable, not a table of rows, or empty.
    """
    if dataset.source == "micro":
        found = _numbered(instructions.rows(dataset.path, part, dataset.options))
    elif dataset.source == "hub":
        found = _filled(_hub_rows(dataset))
    else:
        found = itertools.chain.from_iterable(map(read_file, local_files(dataset)))
    empty = True
    for record in found:
        empty = False
        yield record
    if empty:
        raise UserError(f"dataset.path={dataset.path}: holds no rows")


def local_files(dataset: Dataset) -> list[Path]:
    """Return the files that hold the rows of a local data set, in reading order."""
    path = _place(dataset)
    if not path.exists():
        near = nearest(path.name, _names(path.parent))
        raise UserError(f"dataset.path={dataset.path}: no such file or folder.{near}")
    if path.is_file():
        if path.suffix not in EXTENSIONS:
            raise unknown("dataset.path", path.name, EXTENSIONS)
        return [path]
    if not path.is_dir():
        raise UserError(f"dataset.path={dataset.path}: is neither a file nor a folder")
    if (path / "dataset_dict.json").is_file():
        splits = _saved(path / "dataset_dict.json", "splits")
        if dataset.split not in splits:
            raise unknown("dataset.split", dataset.split, splits)
        return _arrow_files(path / dataset.split)
    if (path / "state.json").is_file():
        return _arrow_files(path)
    return _files_of_split(path, dataset)


def _place(dataset: Dataset) -> Path:
    """Return where a local data set is, which may be asked for."""
    try:
        path = Path(dataset.path).expanduser()
    except RuntimeError as error:  # of a user who is not known
        raise UserError(f"dataset.path={dataset.path}: {error}") from None
    check_name("dataset.path", path)
    return path


def _names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _saved(file: Path, key: str) -> list[Any]:
    """Return the list under `key` in a file with which `datasets` describes what it saved."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"dataset.path={file}: cannot be read as UTF-8 text") from None
    found = _parsed(file, text)
    listed = found.get(key) if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise UserError(f"dataset.path={file}: not a saved `datasets` folder: has no list of {key}")
    return listed


def _arrow_files(folder: Path) -> list[Path]:
    """Return the shards that `datasets` lists in the folder it saved."""
    if not (folder / "state.json").is_file():
        raise UserError(f"dataset.path={folder}: not a saved `datasets` folder: has no state.json")
    files = []
    for shard in _saved(folder / "state.json", "_data_files"):
        name = shard.get("filename") if isinstance(shard, dict) else None
        if not isinstance(name, str) or not name or "\0" in name:
            raise UserError(
                f"dataset.path={folder / 'state.json'}: _data_files must be objects with a filename"
            )
        files.append(folder / name)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(f"dataset.path={folder}: {missing[0]} is missing")
    return files


def _files_of_split(folder: Path, dataset: Dataset) -> list[Path]:
    """Return the files named after the split: train.jsonl, train-00000-of-00002.parquet."""
    tables = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in EXTENSIONS)
    if not tables:
        kinds = ", ".join(EXTENSIONS)
        raise UserError(f"dataset.path={folder}: a folder without a {kinds} file")
    splits = {p.name.split(".")[0].split("-")[0] for p in tables}
    if dataset.split not in splits:
        raise unknown("dataset.split", dataset.split, splits)
    return [p for p in tables if p.name.split(".")[0].split("-")[0] == dataset.split]


def _numbered(rows: Any) -> Iterator[Record]:
    return (Record(f"row {number}", fields) for number, fields in enumerate(rows, start=1))


def _filled(rows: Any) -> Iterator[Record]:
    """Return the rows of a columnar table without the keys that its columns fill in as null."""
    return _numbered({key: _present(value) for key, value in row.items()} for row in rows)


def _present(value: Any) -> Any:
    """Return nested records without the keys whose value is null."""
    if isinstance(value, Mapping):
        return {key: _present(each) for key, each in value.items() if each is not None}
    return [_present(each) for each in value] if isinstance(value, list) else value


def _hub_rows(dataset: Dataset) -> Any:
    setting = f"dataset.path={dataset.path}"
    hub.check_data(setting, dataset.path)  # `datasets` would ask for minutes
    from datasets import load_dataset

    try:
        return load_dataset(
            dataset.path, dataset.subset, data_dir=dataset.data_dir, revision=dataset.revision,
            split=dataset.split,
        )  # fmt: skip
    except Exception as error:  # the library raises a dozen kinds; the user needs its first line
        if hub.unreachable() and isinstance(error, OSError):
            raise hub.absent(setting) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{setting}: the hub data set could not be loaded ({reason})") from None


def read_table(setting: str, file: Path) -> Iterator[Record]:
    """Yield the records of one file that `setting` names, which need not be `dataset.path`.

    Raises:
        UserError: it has another extension, is not there, or cannot be read.
    """
    check_file(setting, file)
    if file.suffix not in EXTENSIONS:
        raise unknown(setting, file.name, EXTENSIONS)
    try:
        yield from read_file(file)
    except UserError as error:
        raise UserError(str(error).replace("dataset.path=", f"{setting}=", 1)) from None


def read_file(file: Path) -> Iterator[Record]:
    """Yield the records of one file, by its extension; never all of a long file at once.

    Raises:
        UserError: it cannot be read as that.
    """
    check_file("dataset.path", file)
    readers = {".json": _json, ".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    try:
        yield from readers.get(file.suffix, _arrow)(file)
    except UnicodeDecodeError:
        raise UserError(f"dataset.path={file}: not UTF-8 text") from None
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"dataset.path={file}: cannot be read ({reason})") from None


def _json(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8-sig") as stream:
        opening = next((line.lstrip()[:1] for line in stream if line.strip()), "")
    if opening != "[":  # many files of JSON lines are called .json
        yield from _jsonl(file)
        return
    for record in _numbered(_listed(file)):
        yield _checked(file, record)


def _listed(file: Path) -> Iterator[Any]:
    """Yield the elements of a JSON list one by one: as text they take a tenth of the memory."""
    text = file.read_text(encoding="utf-8-sig")
    decode = _DECODER.raw_decode
    at = _visible(text, text.index("[") + 1)
    more = text[at : at + 1] != "]"
    while more:
        try:
            found, end = decode(text, at)
        except (_KeyTwice, ValueError, RecursionError):
            break
        yield found
        end = _visible(text, end)
        more = text[end : end + 1] == ","
        at = _visible(text, end + 1) if more else end
    if more or text[at : at + 1] != "]" or text[at + 1 :].strip(_SPACE):
        _parsed(file, text)  # says what is wrong, and where


def _visible(text: str, at: int) -> int:
    """Return where the next character is that JSON does not skip."""
    while text[at : at + 1] in _SPACES:
        at += 1
    return at


def _jsonl(file: Path) -> Iterator[Record]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                place = f"line {number}"
                yield _checked(file, Record(place, _parsed(file, line.removesuffix("\n"), place)))


def _parsed(file: Path, text: str, place: str | None = None) -> Any:
    """Return what JSON text holds; `place` is its place in the file, if it is not all of it."""
    try:
        return _DECODER.decode(text)
    except _KeyTwice as error:
        at = f"{place}: " if place else ""
        raise UserError(f"dataset.path={file}: {at}has the key {str(error)!r} twice") from None
    except (ValueError, RecursionError) as error:  # broken, or too long or too deep for Python
        at = place or f"line {getattr(error, 'lineno', 1)}"
        reason = getattr(error, "msg", None) or str(error).partition(":")[0]
        raise UserError(f"dataset.path={file}: {at}: broken JSON ({reason})") from None


class _KeyTwice(Exception):
    """An object has this key twice: Python would keep the last value and say nothing."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwice(next(key for key in keys if keys.count(key) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # one for all lines


def _checked(file: Path, record: Record) -> Record:
    if not isinstance(record.fields, dict):
        kind = type(record.fields).__name__
        raise UserError(f"dataset.path={file}: {record.place}: must be an object, is a {kind}")
    _check_keys(file, record.fields, record.place)
    return record


def _check_keys(file: Path, names: Iterable[str], place: str) -> None:
    """Refuse names of columns that are no text or, given in a list, are there twice."""
    if fault := _fault_of(tuple(names)):
        raise UserError(f"dataset.path={file}: {place}: {fault}")


@functools.lru_cache(maxsize=64)  # most rows have the same names
def _fault_of(names: tuple[str, ...]) -> str:
    for name in names:
        if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
            return f"the name {name!r} holds half of a surrogate pair, which is no text"
    twice = [name for name, count in Counter(names).items() if count > 1]
    return f"has the column {twice[0]!r} twice" if twice else ""


def _csv(file: Path) -> Iterator[Record]:
    csv.field_size_limit(1 << 27)  # the default of 128 KiB is shorter than some documents
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=separator_of(file), strict=True)
        try:
            _check_keys(file, reader.fieldnames or (), "line 1")
            for fields in reader:
                if None in fields or None in fields.values():
                    raise UserError(
                        f"dataset.path={file}: line {reader.line_num}: "
                        f"must have {len(reader.fieldnames or ())} columns"
                    )
                yield Record(f"line {reader.line_num}", fields)
        except csv.Error as error:
            raise UserError(
                f"dataset.path={file}: line {reader.line_num}: broken CSV ({error})"
            ) from None


def _parquet(file: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as source:
            _check_keys(file, source.schema_arrow.names, "its header")
            yield from _rows(file, source.iter_batches())
    except pyarrow.ArrowException:
        raise UserError(f"dataset.path={file}: not a parquet file") from None


def _rows(file: Path, batches: Iterable[Any]) -> Iterator[Record]:
    """Yield the rows of a table of arrow's, which comes in parts."""
    import pyarrow

    def rows() -> Iterator[Any]:
        for batch in batches:
            try:
                batch.validate(full=True)
                found = batch.to_pylist()
            except (pyarrow.ArrowException, ValueError, OverflowError, RecursionError) as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise UserError(f"dataset.path={file}: rows cannot be read ({reason})") from None
            yield from found

    yield from _filled(rows())


def _arrow(file: Path) -> Iterator[Record]:
    import pyarrow

    broken = (pyarrow.ArrowException, ValueError)
    with pyarrow.memory_map(str(file)) as source:
        try:  # `datasets` writes the stream format, other tools the file format
            table = pyarrow.ipc.open_stream(source).read_all()
        except broken:
            try:
                table = pyarrow.ipc.open_file(source).read_all()
            except broken:
                raise UserError(f"dataset.path={file}: not an arrow file") from None
        _check_keys(file, table.column_names, "its header")
        yield from _rows(file, table.to_batches(max_chunksize=TABLE_ROWS))
