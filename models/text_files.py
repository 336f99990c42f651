"""Texts of files that flags name: prompts, grammars, templates."""

from pathlib import Path

from yupana.graphlib.errors import SettingError


def read_file(path: Path) -> str:
    """The text of a file as it is, but for a line end at its end, as llama.cpp reads it.

    Raises:
        SettingError: it is not UTF-8. OSError: the system cannot read it.
    """
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as e:
        raise SettingError(
            f"{path}: not UTF-8: got byte 0x{e.object[e.start]:02X} at offset {e.start}, want text."
        ) from None
