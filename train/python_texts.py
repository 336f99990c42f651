"""Texts that every machine with Python has: prose and programs, to learn from without a download.

They differ a little between versions of Python.
"""

import importlib.util
from pathlib import Path

from yupana.graphlib.errors import DataError

# Some 500,000 characters in the style of many authors, none of them generated.
_MODULES = ("argparse", "configparser", "inspect", "pathlib", "subprocess", "tarfile", "zipfile")


def documentation_text() -> str:
    """The text of Python's own documentation topics: some real text that is on every machine.

    Raises:
        DataError: this Python was installed without them.

    >>> text = documentation_text()
    >>> len(text) > 300_000, "conditional execution" in text
    (True, True)
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "train data: this Python has no documentation topics: got no module pydoc_data, want "
            "its texts. Train on a file of your own."
        ) from None
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def source_text() -> str:
    """The source of some modules of Python's library.

    Raises:
        DataError: this Python was installed without sources.

    >>> text = source_text()
    >>> len(text) > 300_000, "def __init__(self" in text
    (True, True)
    """
    specs = [importlib.util.find_spec(name) for name in _MODULES]
    paths = [Path(spec.origin) for spec in specs if spec and spec.origin]
    texts = [path.read_text("utf-8") for path in paths if path.suffix == ".py" and path.is_file()]
    if not texts:
        raise DataError(
            f"train data: this Python has no sources: got none of {', '.join(_MODULES)}, want the "
            "modules of its library as .py files. Train on a file of your own."
        )
    return "\n\n".join(texts)
