"""Error in ulp of the mathematical kernels over every float32, and their time per element.

    python benchmarks/accuracy.py --write             all; two minutes each; writes the page
    python benchmarks/accuracy.py --stride 64 exp     one in 64 floats, one op; prints only

An ulp is the distance of neighbouring floats at the exact result (2^-149 among denormals). The
exact result is the C library's in float64. Infinities and NaN have to come out as such.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from measure import in_turn
from numba import njit

import yupana as yp
from yupana.graphlib.op import REGISTRY

try:
    import torch
except ImportError:  # then its column stays empty
    torch = None  # type: ignore[assignment]
else:
    torch.set_num_threads(1)

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"
_BATCH = 1 << 18  # floats at a time: few enough for the cache
_TIMED = 1 << 16
_ROUNDS = 201


@njit(error_model="numpy")
def _exp(x):
    return np.exp(x)


@njit(error_model="numpy")
def _expm1(x):
    return np.expm1(x)


@njit(error_model="numpy")
def _log(x):
    return np.log(x)


@njit(error_model="numpy")
def _sin(x):
    return np.sin(x)


@njit(error_model="numpy")
def _cos(x):
    return np.cos(x)


@njit(error_model="numpy")
def _tanh(x):
    return np.tanh(x)


@njit(error_model="numpy")
def _erf(x):
    return math.erf(x)


@njit(error_model="numpy")
def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


@njit(error_model="numpy")
def _softplus(x):
    return max(x, 0.0) + np.log1p(np.exp(-abs(x)))


@njit(error_model="numpy")
def _gated(x, t):
    return -0.0 if x == -np.inf else x / (1.0 + np.exp(-t))


@njit(error_model="numpy")
def _silu(x):
    return _gated(x, x)


@njit(error_model="numpy")
def _gelu(x):
    return _gated(x, 2.0 * np.sqrt(2.0 / np.pi) * x * (1.0 + 0.044715 * x * x))


@njit(error_model="numpy")
def _gelu_quick(x):
    return _gated(x, 1.702 * x)


@njit(error_model="numpy")
def _gelu_erf(x):
    return -0.0 if x == -np.inf else 0.5 * x * math.erfc(-x * np.sqrt(0.5))


class Function(NamedTuple):
    """What the op of that name is compared with: the exact value, NumPy's and torch's."""

    exact: Any
    numpy: Callable[..., Any] | None
    torch: Callable[..., Any] | None


def _in(library: Any, name: str) -> Callable[..., Any] | None:
    """A function that takes the array to write to, if the library is there and has it."""
    return getattr(library, name, None)


def _of_torch(name: str, **options: Any) -> Callable[..., Any] | None:
    """A torch function that makes its own result, wrapped to take one."""
    if torch is None:
        return None
    function = getattr(torch.nn.functional, name)
    return lambda x, out: function(x, **options)


FUNCTIONS = {
    "exp": Function(_exp, np.exp, _in(torch, "exp")),
    "expm1": Function(_expm1, np.expm1, _in(torch, "expm1")),
    "log": Function(_log, np.log, _in(torch, "log")),
    "sin": Function(_sin, np.sin, _in(torch, "sin")),
    "cos": Function(_cos, np.cos, _in(torch, "cos")),
    "tanh": Function(_tanh, np.tanh, _in(torch, "tanh")),
    "erf": Function(_erf, None, _in(torch, "erf")),
    "sigmoid": Function(_sigmoid, None, _in(torch, "sigmoid")),
    "softplus": Function(_softplus, None, _of_torch("softplus")),
    "silu": Function(_silu, None, _of_torch("silu")),
    "gelu": Function(_gelu, None, _of_torch("gelu", approximate="tanh")),
    "gelu_erf": Function(_gelu_erf, None, _of_torch("gelu")),
    "gelu_quick": Function(_gelu_quick, None, None),
}


@njit(error_model="numpy")
def largest_error(exact, x, got):
    """Largest error of `got` as `exact(x)`, in ulp, and where; infinite for a wrong special."""
    worst, at = 0.0, x[0]
    for i in range(x.size):
        want, y = exact(np.float64(x[i])), np.float64(got[i])
        if y == want or (np.isnan(y) and np.isnan(want)):
            continue
        size = abs(want)
        # Halfway above the largest float everything rounds to infinity.
        if size >= 3.4028235677973366e38 and abs(y) == np.inf and y * want > 0:
            continue
        exponent = max((np.float64(size).view(np.int64) >> 52) - 1023, -126)
        spacing = np.int64((exponent - 23 + 1023) << 52).view(np.float64)
        error = abs(y - want) / spacing
        if not error <= worst:
            worst, at = (error, x[i]) if error < np.inf else (np.inf, x[i])
    return worst, at


def floats(stride: int) -> Iterator[Any]:
    """Every `stride`-th float32 by its bits, in batches, and all that begin or end a binade."""
    edges = np.arange(512, dtype=np.uint64)[:, None] << np.uint64(23)
    near = np.arange(-4, 5, dtype=np.int64).astype(np.uint64)
    yield (edges + near).astype(np.uint32).reshape(-1).view(np.float32)
    for start in range(0, 1 << 32, _BATCH * stride):
        bits = np.arange(start, min(start + _BATCH * stride, 1 << 32), stride, dtype=np.uint64)
        yield bits.astype(np.uint32).view(np.float32)


class Runner:
    """One op on one thread, over as many floats as given."""

    def __init__(self, name: str, size: int) -> None:
        self.x = yp.tensor(np.zeros(size, np.float32))
        self._y = REGISTRY[name](self.x)
        self._program = yp.Graph([self._y]).compile(threads=1)
        self.run = self._program.run

    def __call__(self, values: Any) -> Any:
        """The op's value of each of `values`."""
        self.x.data[: values.size] = values
        self.run()
        return self._program.value(self._y)[: values.size]


class Error(NamedTuple):
    """The largest error in ulp, where it is, and over how many floats."""

    ulp: float
    at: float
    floats: int


def error_of(name: str, stride: int) -> Error:
    """Largest error over every `stride`-th float32."""
    function, run = FUNCTIONS[name], Runner(name, _BATCH)
    worst, at, count = 0.0, 0.0, 0
    for x in floats(stride):
        error, place = largest_error(function.exact, x, run(x))
        count += x.size
        if error > worst:
            worst, at = error, float(place)
    return Error(worst, at, count)


def times_of(name: str) -> dict[str, float]:
    """Nanoseconds per element here and elsewhere, one thread, in turn."""
    function, ours = FUNCTIONS[name], Runner(name, _TIMED)
    x = np.random.default_rng(0).uniform(-6.0, 6.0, _TIMED).astype(np.float32)
    if name == "log":
        x = np.abs(x)
    ours.x.data[...] = x
    sides: dict[str, Callable[[], object]] = {"yupana": ours.run}
    if function.numpy is not None:
        out = np.empty_like(x)
        sides["NumPy"] = partial(function.numpy, x, out=out)
    if function.torch is not None:
        tensor = torch.from_numpy(x)
        sides["torch"] = partial(function.torch, tensor, out=torch.empty_like(tensor))
    seconds = in_turn(sides, _ROUNDS, repeat=10, clock=time.process_time)
    return {side: s / _TIMED * 1e9 for side, s in seconds.items()}


_HEAD = "| op | largest error, ulp | at x = | floats tried | ns: yupana | NumPy | torch |"


def row_of(name: str, stride: int) -> str:
    """A line of the page's table."""
    error, ns = error_of(name, stride), times_of(name)
    times = " | ".join(f"{ns[k]:.2f}" if k in ns else "–" for k in ("yupana", "NumPy", "torch"))
    count = "all" if stride == 1 else f"{error.floats:,}"
    return f"| {name} | {error.ulp:.3f} | {error.at:.9g} | {count} | {times} |"


def specials() -> str:
    """A table of what comes out at the ends of the range, as the kernels have it."""
    x = np.array([-np.inf, -1e30, -1e-45, 1e-45, 1e30, np.inf, np.nan], np.float32)
    lines = ["| op | " + " | ".join(f"{v:.2g}" for v in x) + " |", "|---" * (x.size + 1) + "|"]
    for name in FUNCTIONS:
        values = (f"{v:.3g}" for v in Runner(name, x.size)(x))
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def page(rows: dict[str, str]) -> str:
    """The page; `rows` by name."""
    table = "\n".join([_HEAD, "|---" * 7 + "|", *(rows[n] for n in FUNCTIONS if n in rows)])
    versions = f"NumPy {np.__version__}" + (f", torch {torch.__version__}" if torch else "")
    return _PAGE.format(table=table, versions=versions, specials=specials())


_PAGE = """# How exact the mathematical functions are

Written by `python benchmarks/accuracy.py --write`.

Each op was computed for float32 arguments and compared with the C library in float64. An ulp is
the distance of neighbouring floats at the exact result, 2^-149 among denormals; a correctly
rounded result is off by at most 0.5. "all" means all 2^32 bit patterns, infinities, NaNs and
denormals among them. The promise is 4 ulp; `tests/test_math.py` holds every change to it.

Times are nanoseconds of a processor per element on one thread, medians over {rounds} rounds of ten
times {timed} arguments between -6 and 6 (above 0 for log), in turn with
{versions}.
torch's activations make their result anew each time; NumPy has no functions for them.

{table}

The functions are polynomials without branches that LLVM turns into vector code
(`graphlib/kernels/math.py`, `gates.py`, `trigonometry.py`). Some of them deserve a word:

- **silu and gelu** far below 0 are x times an exponential. The argument of the exponential is kept
  in more than float32 there, and denormal results are rounded once. Written as in their
  definitions, gelu would be 0 below -5.1, where it is -8e-8, and silu be off by 50 ulp near -100.
- **sin and cos** are reduced by as many digits of pi as the argument needs, up to the largest
  float. Blocks whose arguments all lie within 3200 of 0 take a shorter way to the same bits, and so
  do blocks of positive, normal arguments in log.

At the ends of the range the limit comes out, also where the formula would give infinity times 0:

{specials}
""".replace("{rounds}", str(_ROUNDS)).replace("{timed}", f"{_TIMED:,}")


def _rows_on_page() -> dict[str, str]:
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    start = lines.index(_HEAD) + 2 if _HEAD in lines else len(lines)
    end = next((k for k in range(start, len(lines)) if not lines[k].startswith("|")), len(lines))
    return {line.split("|")[1].strip(): line for line in lines[start:end]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stride", type=int, default=1, help="every so many floats; 1: all")
    parser.add_argument("--write", action="store_true", help=f"put the rows into {PAGE.name}")
    parser.add_argument("ops", nargs="*", help=", ".join(FUNCTIONS))
    options = parser.parse_args()
    rows = {}
    for name in options.ops or FUNCTIONS:
        start = time.perf_counter()
        rows[name] = row_of(name, options.stride)
        print(rows[name], f"{time.perf_counter() - start:.0f} s", flush=True)
    if options.write:
        PAGE.write_text(page({**_rows_on_page(), **rows}))


if __name__ == "__main__":
    main()
