"""The numbers of a record's words, for the kernels that read it."""

from types import ModuleType
from typing import Any


def word_numbers(record: Any) -> Any:
    """The number of each word of a `NamedTuple`, under the word's name; `n_words` counts them.

    A module, since kernels take what stands in one for constants. Of a tuple they would load all
    words to use one, in every place: code that takes long to compile, for nothing.

    >>> from typing import NamedTuple
    >>> Sizes = NamedTuple("Sizes", [("rows", int), ("columns", int)])
    >>> R = word_numbers(Sizes)
    >>> R.rows, R.columns, R.n_words
    (0, 1, 2)
    """
    names = ModuleType(record.__name__)
    fields = {name: number for number, name in enumerate(record._fields)}
    vars(names).update(fields, n_words=len(fields))
    return names
