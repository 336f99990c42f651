"""What compiled code is made from besides the kernels' own files, as text for the cache's key.

A kernel binds functions from anywhere: formulas of the ops, functions in users' files. numba does
not notice when one of them changes, or something they read. So the key holds the byte code of a
function, of the functions it calls, and the constants it reads, however far down.
"""

import dis
import sys
import types
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

# Not looked into: their versions are in the key already, or nobody edits them.
_SETTLED = {"numpy", "numba", "llvmlite", "scipy", "builtins", *sys.stdlib_module_names}
_KERNELS = __name__.rpartition(".")[0]  # hashed file by file


def is_users(function: Any) -> bool:
    """Whether a function comes from outside the kernels and the packages they are made with."""
    module = getattr(function, "__module__", None) or ""
    if module == "__main__":
        return True
    return not module.startswith(_KERNELS) and module.partition(".")[0] not in _SETTLED


def names_bound(function: Any, bound: Iterable[str]) -> frozenset[str]:
    """Which of the names that a kernel binds a function sees as the kernel means them.

    The library's own functions share all of them with the template; elsewhere a name like `array`
    is the author's business, and only `real` is bound.
    """
    is_own = (getattr(function, "__module__", None) or "").startswith("yupana.")
    return frozenset(name for name in bound if is_own or name == "real")


def globals_read(code: types.CodeType) -> list[tuple[str, str]]:
    """Global names that a function and those within it read, each with the attribute taken of it.

    >>> globals_read((lambda x: len(x) + sys.maxsize).__code__)
    [('len', ''), ('sys', 'maxsize')]
    """
    found: dict[tuple[str, str], None] = {}
    instructions = [i for i in dis.get_instructions(code) if i.opname != "PUSH_NULL"]
    for this, after in pairwise([*instructions, instructions[-1]]):
        if this.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            takes = after.opname in ("LOAD_ATTR", "LOAD_METHOD")
            found[this.argval, after.argval if takes else ""] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= dict.fromkeys(globals_read(constant))
    return list(found)


def fingerprint(value: Any, bound: frozenset[str] = frozenset()) -> str:
    """Text that changes when machine code made from `value` would.

    Args:
        value: a function, plain or compiled by numba, or a constant.
        bound: names that a kernel binds; see `names_bound`.
    """
    return "\n".join(_texts(value, bound, {}))


def _texts(value: Any, bound: frozenset[str], seen: dict[int, int]) -> Iterator[str]:
    function = getattr(value, "py_func", value)
    code = getattr(function, "__code__", None)
    if id(value) in seen:
        yield f"seen {seen[id(value)]}"
        return
    seen[id(value)] = len(seen)
    if isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}{value.tobytes().hex()}"
    elif isinstance(value, tuple):
        for item in value:
            yield from _texts(item, bound, seen)
    elif code is None:
        yield repr(value)
    else:
        yield _code_text(code)
        if is_users(function):
            yield from _surroundings(function, code, bound, seen)


def _surroundings(
    function: Any, code: types.CodeType, bound: frozenset[str], seen: dict[int, int]
) -> Iterator[str]:
    """What a user's function reads: defaults, closed-over variables, globals, parts of modules."""
    yield repr(function.__defaults__)
    for cell in function.__closure__ or ():
        yield from _texts(cell.cell_contents, bound, seen)
    bound = names_bound(function, bound)
    for name, attribute in globals_read(code):
        if name in bound or name not in function.__globals__:
            continue
        found = function.__globals__[name]
        yield f"{name}.{attribute}"
        if not isinstance(found, types.ModuleType):
            yield from _texts(found, bound, seen)
        elif found.__name__.partition(".")[0] not in _SETTLED:
            yield from _texts(vars(found).get(attribute), bound, seen)


def _code_text(code: types.CodeType) -> str:
    parts = [_code_text(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{parts}"
