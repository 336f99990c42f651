"""Rows of attention: scores become weights, and weights with their gradients those of scores.

In float32 these are vectors written out: rows are short, and loops that LLVM vectorises by itself
spend most of their time on what is left over behind whole vectors. Rows lie in blocks of whole
vectors, so what stands behind the `n` elements of one may be written.

`settings` is the address of two numbers: the factor of the scores, and that of their gradients.
"""

from typing import Any

import numpy as np
from llvmlite import ir

from yupana.graphlib.kernels.convert import to_half
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.lanes import Cell, Lanes, everywhere, read, where, write
from yupana.graphlib.kernels.math import LOWEST
from yupana.graphlib.kernels.pointers import f64_array
from yupana.graphlib.kernels.vector import (
    F32,
    I16,
    LANES,
    const,
    half_to_f32,
    load,
    loop,
    mask_below,
    masked_load,
    store,
    vector,
    void_intrinsic,
    zeros,
)

_ROUNDER = 1.5 * 2**23  # adding it leaves no bits behind the point
_POWERS = (0.00138144672, 0.00836878084, 0.0416683927, 0.166665196, 0.49999994)
_OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "nsz", "reassoc"}}


def _exp(x: Lanes) -> Lanes:
    """e to the power x <= 0, to 2 ulp; 0 where that is hardly a normal number."""
    low = x < LOWEST
    x = where(low, x.like(LOWEST), x)
    shifted = x.times_plus(1.4426950408889634, _ROUNDER)  # its last bits: the nearest integer
    n = shifted.minus_as_written(_ROUNDER)
    r = n.times_plus(-0.693359375, x)  # exact
    r = n.times_plus(2.1219444005469057e-4, r)
    p = r.like(_POWERS[0])
    for power in _POWERS[1:]:
        p = p.times_plus(r, power)
    y = (r * r).times_plus(p, r) + 1.0
    scale = ((shifted.bits(ir.IntType(32)) + 127) << 23).bits(F32)
    return where(low, x.like(0.0), y * scale)


def _across(x: Lanes, join: Any) -> Lanes:
    """All lanes joined, in every lane, in an order that does not depend on anything."""
    half = LANES // 2
    while half:
        x = join(x, x.part([lane ^ half for lane in range(LANES)]))
        half //= 2
    return x


def _number(b: Any, address: Any) -> Lanes:
    return everywhere(b, load(b, F32, address, 4), LANES)


def _set(x: Lanes, address: Any) -> None:
    store(x.b, x.b.extract_element(x.value, ir.Constant(ir.IntType(32), 0)), address)


def _vectors(b: Any, start: Any, stop: Any, body: Any) -> Any:
    """body(byte offset, elements left) for each vector that begins before `stop`; where it ends."""
    end = b.and_(b.add(stop, const(LANES - 1)), const(-LANES))
    loop(b, start, end, LANES, lambda i: body(b.mul(i, const(4)), b.sub(stop, i)))
    return end


def _clear(b: Any, rows: list[Any], start: Any, stop: Any) -> None:
    def zero(at: Any, _: Any) -> None:
        for row in rows:
            write(Lanes(b, zeros(vector())), b.add(row, at))

    _vectors(b, start, stop, zero)


def _soften(b: Any, args: list[Any]) -> None:
    """See `soften`."""
    row, seen, n, settings, peak, total, factor = args
    scale, before = _number(b, settings), _number(b, peak)
    top = Cell(before.like(-np.inf))

    def scaled(at: Any, left: Any) -> None:
        z = read(b, F32, LANES, b.add(row, at)) * scale
        z = where(Lanes(b, mask_below(b, left)), z, z.like(-np.inf))
        write(z, b.add(row, at))
        top.set(z.most(top.get()))

    end = _vectors(b, const(0), seen, scaled)
    largest = before.most(_across(top.get(), Lanes.most))
    shift = where(largest.equals(-np.inf), before.like(0.0), largest)  # -inf - -inf would be NaN
    added = Cell(before.like(0.0))

    def powers(at: Any, _: Any) -> None:
        e = _exp(read(b, F32, LANES, b.add(row, at)) - shift)
        write(e, b.add(row, at))
        added.set(added.get() + e)

    _vectors(b, const(0), seen, powers)
    shrunk = _exp(before - shift)
    _set(_number(b, total).times_plus(shrunk, _across(added.get(), Lanes.__add__)), total)
    _set(largest, peak)
    _set(shrunk, factor)
    _clear(b, [row], end, n)


def _halve(b: Any, args: list[Any]) -> None:
    """See `halve`."""
    source, out, n, factor = args
    times = _number(b, factor)

    def body(at: Any, left: Any) -> None:
        x = masked_load(b, vector(), b.add(source, at), mask_below(b, left), 4)
        half = to_half(b, (Lanes(b, x) * times).value, LANES)
        bits = b.bitcast(half, vector(LANES, I16))
        write(Lanes(b, half_to_f32(b, bits, "f16")), b.add(out, at))

    _vectors(b, const(0), n, body)


def _differentiate(b: Any, args: list[Any]) -> None:
    """See `differentiate`."""
    row, slope, seen, n, settings, total, delta = args
    scale, outer = _number(b, settings), _number(b, b.add(settings, const(4)))
    shift, less = -_number(b, total), _number(b, delta)

    def body(at: Any, left: Any) -> None:
        mask = Lanes(b, mask_below(b, left))
        e = _exp(read(b, F32, LANES, b.add(row, at)).times_plus(scale, shift))
        g = (read(b, F32, LANES, b.add(slope, at)) - less) * outer * e
        write(where(mask, e, e.like(0.0)), b.add(row, at))
        write(where(mask, g, g.like(0.0)), b.add(slope, at))

    _clear(b, [row, slope], _vectors(b, const(0), seen, body), n)


@for_kernels(**_OPTIONS)
def _soften_f64(row, seen, n, settings, peak, total, factor):
    x, scale = f64_array(row, n), f64_array(settings, 1)[0]
    largest, sums, before = f64_array(peak, 1), f64_array(total, 1), f64_array(peak, 1)[0]
    for j in range(seen):
        x[j] *= scale
        largest[0] = max(largest[0], x[j])
    shift = 0.0 if largest[0] == -np.inf else largest[0]
    f64_array(factor, 1)[0] = shrunk = np.exp(before - shift)
    sums[0] *= shrunk
    for j in range(n):
        x[j] = np.exp(x[j] - shift) if j < seen else 0.0
        sums[0] += x[j]


@for_kernels(**_OPTIONS)
def _differentiate_f64(row, slope, seen, n, settings, total, delta):
    x, g, factors = f64_array(row, n), f64_array(slope, n), f64_array(settings, 2)
    shift, less = f64_array(total, 1)[0], f64_array(delta, 1)[0]
    for j in range(n):
        x[j] = np.exp(x[j] * factors[0] - shift) if j < seen else 0.0
        g[j] = x[j] * (g[j] - less) * factors[1] if j < seen else 0.0


# soften(row, seen, n, settings, peak, total, factor): row = e^(score - largest so far) for the
# scores of the keys seen, 0 up to n; peak and total, of the blocks before, are brought up to date;
# factor is what results of the blocks before are to be multiplied with.
SOFTEN = {False: void_intrinsic("attention_soften", 7, _soften), True: _soften_f64}
# halve(source, out, n, factor): out = source · factor, rounded to float16, as float32.
HALVE = void_intrinsic("attention_halve", 4, _halve)
# differentiate(row, slope, seen, n, settings, total, delta): row = p = e^(score - total), and
# slope, the gradient of p, becomes that of the products: factor · p · (slope - delta).
DIFFERENTIATE = {
    False: void_intrinsic("attention_differentiate", 7, _differentiate),
    True: _differentiate_f64,
}
