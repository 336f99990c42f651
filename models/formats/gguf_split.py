"""Models in several GGUF files, as llama.cpp's gguf-split writes them.

The files are called NAME-00001-of-00003.gguf and so on. Each says in `split.no` which one it is,
counted from 0, and in `split.count` how many there are; the first holds the model's metadata.
"""

import re
from collections.abc import Callable
from pathlib import Path

from yupana.models.formats.gguf_cursor import shown
from yupana.models.formats.gguf_header import Header, TensorInfo

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def open_parts(path: Path, read: Callable[[Path], Header]) -> list[Header]:
    """The headers of all files of a model, the first part first; a list of one for most.

    Args:
        path: any of the parts.
        read: opens a file and reads its header.

    Raises:
        FileFormatError: parts are missing, or are not parts of one model.
    """
    given = read(path)
    count = _number(given, "split.count") if "split.count" in given.metadata else 0
    if count <= 1:  # 0 in a file that was put together from parts
        return [given]
    paths = _part_paths(path, given, count)
    parts = [given if part == path else read(part) for part in paths]
    for number, part in enumerate(parts):
        _expect(part, "split.no", number)
        _expect(part, "split.count", count)
    total = sum(len(part.tensors) for part in parts)
    for part in parts:
        _expect(part, "split.tensors.count", total)
    return parts


def join_tensors(parts: list[Header]) -> dict[str, TensorInfo]:
    """All tensors of all parts.

    Raises:
        FileFormatError: two parts have a tensor of the same name.
    """
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for name, info in part.tensors.items():
            if name in tensors:
                got = f"{shown(name)}, which is in {tensors[name].path.name} too"
                raise part.cursor.error("tensor before", got, "each name once", info._field)
            tensors[name] = info
    return tensors


def _part_paths(path: Path, given: Header, count: int) -> list[Path]:
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise given.cursor.error(
            "value of 'split.count'",
            f"{count} in a file called {shown(path.name)}",
            f"a name that ends in -00001-of-{count:05}.gguf or another number of a part",
            given.metadata.position("split.count"),
            "Give the parts their names back.",
        )
    paths = [path.with_name(f"{match[1]}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise given.cursor.error(
            "value of 'split.count'",
            f"{count - len(missing)} of {count} parts: {shown(missing[0])} is missing",
            "all parts in one folder",
            given.metadata.position("split.count"),
            "Fetch the missing parts.",
        )
    return paths


def _expect(part: Header, key: str, wanted: int) -> None:
    got = _number(part, key)
    if got != wanted:
        raise part.cursor.error(
            f"value of {shown(key)}",
            got,
            f"{wanted} in this part",
            part.metadata.position(key),
            "The parts are of different models, or one was copied over another.",
        )


def _number(part: Header, key: str) -> int:
    value = part.metadata[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        got = f"{part.metadata.type_name(key)} {shown(value)}"
        at = part.metadata.position(key)
        raise part.cursor.error(f"value of {shown(key)}", got, "a whole number", at)
    return value
