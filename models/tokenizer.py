"""Tokenizers of model files: one door to those of GGUF and of Hugging Face's `tokenizer.json`."""

from os import PathLike
from pathlib import Path

from yupana.graphlib.errors import FileFormatError
from yupana.models.formats import GgufFile
from yupana.models.tokenizer_base import Tokenizer, TokenType
from yupana.models.tokenizer_gguf import read_tokenizer
from yupana.models.tokenizer_hub import read_hub_tokenizer

__all__ = ["TokenType", "Tokenizer", "load_tokenizer", "read_tokenizer"]


def load_tokenizer(path: str | PathLike[str]) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        path: a GGUF file, of vocabulary alone or of a whole model; a `tokenizer.json`; or a
            folder that has one.

    Raises:
        FileFormatError: the file is of another kind, damaged, or without a vocabulary.
        OSError: the system cannot read it.

    >>> import tempfile, pathlib
    >>> from yupana.models.formats import write_gguf
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "vocabulary.gguf"
    >>> entries = {"model": "gpt2", "pre": "gpt-2", "tokens": [*"abĠ", "ab"], "merges": ["a b"]}
    >>> write_gguf(path, {f"tokenizer.ggml.{k}": v for k, v in entries.items()}, {})
    >>> tokenizer = load_tokenizer(path)
    >>> tokenizer.encode("abba"), tokenizer.decode([2, 3])
    ([3, 1, 0], ' ab')
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise FileFormatError(
                f"{path}: the folder has no tokenizer: got no tokenizer.json in it, want one. Give "
                "the path of a GGUF file or of a tokenizer.json."
            )
        return read_hub_tokenizer(path / "tokenizer.json")
    if path.suffix == ".json":
        return read_hub_tokenizer(path)
    with GgufFile(path) as file:
        try:
            return read_tokenizer(file.metadata)
        except FileFormatError as e:
            if str(e).startswith(f"{path}: "):
                raise
            raise FileFormatError(f"{path}: {e}") from None
