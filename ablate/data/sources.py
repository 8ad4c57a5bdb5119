"""Raw records of a data set: from the micro world, the hub, a file or a folder.

A record is a place ("line 7" of a text file, "row 7" of a table, counted from 1) and a dictionary.
Nothing here knows what the columns mean; that is `ablate.data.rows`.
"""

import csv
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate import hub
from ablate.config.schema import Dataset
from ablate.errors import UserError, nearest, unknown
from ablate.micro import instructions

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
    path = Path(dataset.path).expanduser()
    if not path.exists():
        near = nearest(path.name, _names(path.parent))
        raise UserError(f"dataset.path={dataset.path}: no such file or folder.{near}")
    if path.is_file():
        if path.suffix not in EXTENSIONS:
            raise unknown("dataset.path", path.name, EXTENSIONS)
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if dataset.split not in splits:
            raise unknown("dataset.split", dataset.split, splits)
        return _arrow_files(path / dataset.split)
    if (path / "state.json").is_file():
        return _arrow_files(path)
    return _files_of_split(path, dataset)


def _names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir()] if folder.is_dir() else []


def _arrow_files(folder: Path) -> list[Path]:
    """Return the shards that `datasets` lists in the folder it saved."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / shard["filename"] for shard in state["_data_files"]]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"dataset.path={folder}: not a saved `datasets` folder ({error})") from None
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
            dataset.path, dataset.subset, revision=dataset.revision, split=dataset.split
        )
    except Exception as error:  # the library raises a dozen kinds; the user needs its first line
        if hub.unreachable() and isinstance(error, OSError):
            raise hub.absent(setting) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{setting}: the hub data set could not be loaded ({reason})") from None


def read_file(file: Path) -> Iterator[Record]:
    """Yield the records of one file, by its extension; never all of a long file at once.

    Raises:
        UserError: it cannot be read as that.
    """
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
    decode, at = json.JSONDecoder().raw_decode, _visible(text, text.index("[") + 1)
    more = text[at : at + 1] != "]"
    while more:
        try:
            found, end = decode(text, at)
        except (ValueError, RecursionError):
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
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # broken, or too long or too deep for Python
        at = place or f"line {getattr(error, 'lineno', 1)}"
        reason = getattr(error, "msg", None) or str(error).partition(":")[0]
        raise UserError(f"dataset.path={file}: {at}: broken JSON ({reason})") from None


def _checked(file: Path, record: Record) -> Record:
    if not isinstance(record.fields, dict):
        kind = type(record.fields).__name__
        raise UserError(f"dataset.path={file}: {record.place}: must be an object, is a {kind}")
    return record


def _csv(file: Path) -> Iterator[Record]:
    csv.field_size_limit(1 << 27)  # the default of 128 KiB is shorter than some documents
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=_separator(file), strict=True)
        try:
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


def _separator(file: Path) -> str:
    """Return the character that cuts the header into several columns, best as many as the rows."""
    columns: dict[str, tuple[bool, int]] = {}
    for separator in (",", ";", "\t", "|"):
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = itertools.islice(csv.reader(stream, delimiter=separator), 20)
            counts = [len(fields) for fields in first if fields]
        if counts and counts[0] > 1:
            columns[separator] = len(set(counts)) == 1, counts[0]
    return max(columns, key=lambda each: columns[each], default=",")


def _parquet(file: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield from _filled(row for batch in table.iter_batches() for row in batch.to_pylist())
    except pyarrow.ArrowInvalid:
        raise UserError(f"dataset.path={file}: not a parquet file") from None


def _arrow(file: Path) -> Iterator[Record]:
    import pyarrow

    with pyarrow.memory_map(str(file)) as source:
        try:  # `datasets` writes the stream format, other tools the file format
            table = pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            try:
                table = pyarrow.ipc.open_file(source).read_all()
            except pyarrow.ArrowInvalid:
                raise UserError(f"dataset.path={file}: not an arrow file") from None
        batches = table.to_batches(max_chunksize=TABLE_ROWS)
        yield from _filled(row for batch in batches for row in batch.to_pylist())
