"""Where programs write: never over what they read."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from yupana.graphlib.errors import SettingError


def refuse_source(program: str, sources: Iterable[Path], target: str | PathLike[str]) -> None:
    """Raise if writing `target` would replace a file that is read, by whatever name.

    Args:
        program: for the error.
        sources: files, or folders that stand for the files in them which are not GGUF.

    Raises:
        SettingError: the original would be lost.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "config.json").touch()
    >>> refuse_source("convert", [folder], folder / "m.gguf")
    """
    target = Path(target)
    if not target.is_file():
        return
    for source in sources:
        files = [source]
        if source.is_dir():
            files = [path for path in source.iterdir() if path.suffix != ".gguf"]
        if any(file.exists() and file.samefile(target) for file in files):
            raise SettingError(
                f"{program}: got {target} as file to read and as file to write, want two. The "
                "original would be lost."
            )
