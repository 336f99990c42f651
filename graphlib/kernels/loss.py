"""Cross-entropy of rows of logits, its gradient, or both in one sweep.

The steps of a node share a workspace: the sum of the weights, then for every row its weight, its
label and its part of the loss. The first step fills in weights and labels, the second goes
through the logits, the third adds the parts up, in float64 and in order.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import int64, void

from yupana.graphlib.kernels.blocks import (
    CODE,
    HEAD,
    LOAD,
    NATIVE,
    OPERAND_WORDS,
    SIZE,
    STEP,
    View,
    both_kernels,
    collapse,
    head_words,
    operand_words,
    outer_sizes,
    padded,
    row_at,
)
from yupana.graphlib.kernels.compiler import FASTMATH, SIGNATURE, Kernel
from yupana.graphlib.kernels.convert import F64, I32
from yupana.graphlib.kernels.for_kernels import for_kernels
from yupana.graphlib.kernels.math import exp, row_max
from yupana.graphlib.kernels.pointers import (
    call_body,
    call_convert,
    f64_pointer,
    i32_pointer,
    i64_pointer,
)
from yupana.graphlib.kernels.reduce import finish_sum
from yupana.graphlib.kernels.step import Step

_BLOCK = 1024  # logits worked on at a time: they stay in the L1 cache
# Placeholders of the names that a Kernel binds; see blocks.bindings.
real: Any = None
array: Any = None


def cross_entropy(
    logits: View,
    targets: View,
    weights: View | None,
    ignore_index: int,
    workspace: Callable[[int], int],
    *,
    loss: View | None = None,
    gradient: View | None = None,
    seed: View | None = None,
) -> list[Step]:
    """Steps that compute `loss`, or `gradient` = `seed` · d loss / d logits, or both.

    `targets` are labels (i32, one for each row of the logits) or as many numbers as `logits`.
    `gradient` is contiguous, f64 for logits of f64, else f32; it may lie over `logits`.
    """
    rows = math.prod(logits.shape[:-1])
    shared = workspace(8 * (1 + 3 * rows))
    labels = targets if targets.code == I32 else None
    parts = shared + 8 * (1 + 2 * rows)
    steps = []
    if rows:
        steps.append(_weighing(logits.shape[:-1], labels, weights, ignore_index, shared))
        steps.append(_sweep(logits, targets, shared, parts if loss else 0, gradient, seed))
    if loss is not None:
        steps.append(finish_sum(loss, rows, 1.0, parts))
    return steps


def _weighing(
    shape: tuple[int, ...], labels: View | None, weights: View | None, ignore: int, shared: int
) -> Step:
    record = [*head_words(wide=True), *padded(shape, 3, 1), ignore, shared]
    for view in (labels, weights):
        if view is None:
            record += [0] * 5
        else:
            record += [view.code, view.address, *padded(view.strides, 3)]
    return Step(_WEIGHING, tuple(record), 1, 2.0 * math.prod(shape) + 10, 8)


def _sweep(
    logits: View, targets: View, shared: int, parts: int, gradient: View | None, seed: View | None
) -> Step:
    wide = logits.code == F64
    classes, rows = logits.shape[-1], math.prod(logits.shape[:-1])
    dense = targets.code != I32
    views = collapse([logits, targets] if dense else [logits], keep_last=True)
    record = [*head_words(wide), rows, classes, *outer_sizes(views[0].shape), int(dense)]
    record += [shared, parts, gradient.address if gradient else 0]
    record += [seed.code, seed.address] if seed else [0, 0]
    record += [_EXPONENTIALS_OF_ROW[wide].address, _SCALE_ROW[wide].address if gradient else 0]
    for view in views:
        record += operand_words(view)
    blocks = -(-classes // _BLOCK)
    ns = rows * (40 + (0.25 + 0.1 * bool(gradient)) * (1 + wide) * classes)
    return Step(_SWEEP[wide], tuple(record), rows, ns, _STATE + 8 * (_PEAKS + blocks))


_SHAPE, _IGNORE, _SHARED, _LABELS, _WEIGHTS = HEAD, HEAD + 3, HEAD + 4, HEAD + 5, HEAD + 10


def weigh_rows(record, begin, end, scratch):
    """One chunk: weight (0 for a row that does not count) and label of each row, and their sum."""
    r = i64_pointer(record)
    rows = r[_SHAPE] * r[_SHAPE + 1] * r[_SHAPE + 2]
    sums, labels = f64_pointer(r[_SHARED]), i64_pointer(r[_SHARED] + 8 * (1 + rows))
    total = 0.0
    row = 0
    for i0 in range(r[_SHAPE]):
        for i1 in range(r[_SHAPE + 1]):
            for i2 in range(r[_SHAPE + 2]):
                k, w = 0, 1.0
                if r[_LABELS + 1]:
                    k = i32_pointer(_element(record + 8 * _LABELS, i0, i1, i2))[0]
                if r[_WEIGHTS + 1]:
                    address = _element(record + 8 * _WEIGHTS, i0, i1, i2)
                    call_convert(r[LOAD], address, 8, r[_WEIGHTS], 1, scratch)
                    w = f64_pointer(scratch)[0]
                if r[_LABELS + 1] and (k < 0 or k == r[_IGNORE]):
                    w = 0.0
                row += 1
                sums[row] = w
                labels[row - 1] = k
                total += w
    sums[0] = total


@for_kernels
def _element(operand, i0, i1, i2):
    o = i64_pointer(operand)
    return o[1] + i0 * o[2] + i1 * o[3] + i2 * o[4]


_ROWS, _CLASSES, _S1, _S2, _DENSE, _SUMS, _PARTS, _GRADIENT = range(HEAD, HEAD + 8)
_SEED, _EXPONENTIALS, _SCALE = HEAD + 8, HEAD + 10, HEAD + 11
_LOGITS = HEAD + 12
_TARGETS = _LOGITS + OPERAND_WORDS
# Scratch: three blocks, then float64 that the parts of a sweep leave each other.
_STATE = 24 * _BLOCK
_PEAK, _EXPS, _MASS, _DOT, _SHARE, _PEAKS = range(6)


def sweep_rows(record, begin, end, scratch):
    """Chunks are rows; one that does not count is not looked at."""
    r, s = i64_pointer(record), f64_pointer(scratch + _STATE)
    sums, labels = f64_pointer(r[_SUMS]), i64_pointer(r[_SUMS] + 8 * (1 + r[_ROWS]))
    seed = 0.0
    if r[_GRADIENT]:
        call_convert(r[LOAD], r[_SEED + 1], 8, r[_SEED], 1, scratch)
        seed = np.float64(array(scratch, r[_CLASSES])[0])
    for row in range(begin, end):
        out = r[_GRADIENT] + row * r[_CLASSES] * r[SIZE]
        part = 0.0
        if sums[1 + row] != 0:
            share = sums[1 + row] / sums[0]
            logits = row_at(record + 8 * _LOGITS, row, r[_S1], r[_S2])
            targets = row_at(record + 8 * _TARGETS, row, r[_S1], r[_S2])
            call_body(r[_EXPONENTIALS], record, logits, targets, labels[row], out, scratch)
            part = share * (s[_MASS] * (math.log(s[_EXPS]) + s[_PEAK]) - s[_DOT])
            if r[_GRADIENT]:
                s[_SHARE] = share * seed
                call_body(r[_SCALE], record, logits, targets, labels[row], out, scratch)
        elif r[_GRADIENT]:
            array(out, r[_CLASSES])[:] = 0
        if r[_PARTS]:
            f64_pointer(r[_PARTS])[row] = part


def exponentials(record, logits, targets, label, gradient, scratch):
    """Leave exp(logit - largest so far) where the gradient of the row will be.

    Fills in the state: the largest logit, the sum of exponentials relative to it, the sum of the
    targets, and the sum of their products with the logits.
    """
    r, s = i64_pointer(record), f64_pointer(scratch + _STATE)
    out, copy = scratch, scratch + 8 * _BLOCK
    peak, exps, mass, dot = -np.inf, 0.0, 0.0, 0.0
    if not r[_DENSE]:
        mass, dot = 1.0, np.nan  # of a label that is no class
        if label < r[_CLASSES]:
            at = logits + label * r[_LOGITS + STEP]
            call_convert(r[LOAD], at, 8, r[_LOGITS + CODE], 1, scratch)
            dot = np.float64(array(scratch, r[_CLASSES])[0])
    for start in range(0, r[_CLASSES], _BLOCK):
        n = min(_BLOCK, r[_CLASSES] - start)
        if r[_GRADIENT]:
            out = gradient + start * r[SIZE]
        x = array(_block(record, record + 8 * _LOGITS, logits, start, n, out, copy), n)
        if r[_DENSE]:
            t = array(
                _block(record, record + 8 * _TARGETS, targets, start, n, out, copy + 8 * _BLOCK), n
            )
            mass, dot = _add_products(t, x, mass, dot)
        highest = np.float64(row_max(x))
        if highest > peak or highest != highest:  # or NaN
            if exps != 0:
                exps *= math.exp(peak - highest)
            peak = highest
        exps += _exponentials_from(x, real(peak if peak != -np.inf else 0.0), array(out, n))
        s[_PEAKS + start // _BLOCK] = peak
    s[_PEAK], s[_EXPS], s[_MASS], s[_DOT] = peak, exps, mass, dot


def scale(record, logits, targets, label, gradient, scratch):
    """Turn exponentials into the gradient: share · (mass · exp(logit - peak) / sum - target)."""
    r, s = i64_pointer(record), f64_pointer(scratch + _STATE)
    factor, share = s[_SHARE] * s[_MASS] / s[_EXPS], real(s[_SHARE])
    for start in range(0, r[_CLASSES], _BLOCK):
        n = min(_BLOCK, r[_CLASSES] - start)
        at = gradient + start * r[SIZE]
        out = array(at, n)
        before = s[_PEAKS + start // _BLOCK]
        same = before == s[_PEAK]
        f = real(factor if same else factor * math.exp(before - s[_PEAK]))
        if r[_DENSE]:
            t = array(
                _block(record, record + 8 * _TARGETS, targets, start, n, at, scratch + 8 * _BLOCK),
                n,
            )
            for i in range(n):
                out[i] = out[i] * f - t[i] * share
        else:
            for i in range(n):
                out[i] *= f
    if not r[_DENSE]:
        # A label that is no class makes the gradient NaN, as it made the loss; an infinite logit
        # does not.
        last = r[_CLASSES] - 1
        part = s[_SHARE] if label <= last else np.nan
        array(gradient, r[_CLASSES])[min(label, last)] -= real(part)


@for_kernels
def _block(record, operand, row, start, n, out, copy):
    """Address of part of a row, of the type computed in and apart from `out`."""
    r, o = i64_pointer(record), i64_pointer(operand)
    address = row + start * o[STEP]
    is_native = o[CODE] == r[NATIVE] and (o[STEP] == r[SIZE] or n == 1)
    if is_native and address != out:
        return address
    call_convert(r[LOAD], address, o[STEP], o[CODE], n, copy)
    return copy


@for_kernels(fastmath=FASTMATH)
def _exponentials_from(x, peak, out):
    """Write exp(x - peak); returns their sum."""
    for i in range(x.size):
        out[i] = exp(x[i] - peak)
    # Apart from the loop above: LLVM leaves that one scalar when `out` begins less than 256 bytes
    # behind `x`, and in another order the sum of a short row would depend on where it lies.
    total = x.dtype.type(0)
    for i in range(x.size):
        total += out[i]
    return np.float64(total)


@for_kernels(fastmath=FASTMATH)
def _add_products(t, x, mass, dot):
    """Add the sums of t and of t · x; a target of 0 takes part in neither."""
    for i in range(x.size):
        y = np.float64(t[i])
        mass += y
        dot += y * np.float64(x[i]) if y != 0 else 0.0
    return mass, dot


_BODY_SIGNATURE = void(*[int64] * 6)
_WEIGHING = Kernel(weigh_rows)
_SWEEP, _EXPONENTIALS_OF_ROW, _SCALE_ROW = (
    both_kernels(template, signature=signature)
    for template, signature in (
        (sweep_rows, SIGNATURE),
        (exponentials, _BODY_SIGNATURE),
        (scale, _BODY_SIGNATURE),
    )
)
