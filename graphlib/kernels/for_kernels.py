"""Functions that only kernels call."""

from typing import Any

from numba import njit

# numba builds two more functions around each, by which Python and C may call it. They would take a
# third of the time that most kernels take to compile.
ALONE = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def for_kernels(function: Any = None, **options: Any) -> Any:
    """As `numba.njit`, for functions that only compiled code calls.

    A call from Python would crash the process: there is nothing that it could call.
    """
    return njit(function, **options | ALONE)
