"""Tensors of quantised types: their memory, copies and products, on other processors, too."""

import contextlib
import ctypes
import mmap
import os
import platform
import sys
from typing import Any

import numpy as np
import pytest

import yupana as yp
from tests.targets import TARGETS, in_process, shared_cache
from yupana.graphlib import quants
from yupana.graphlib.errors import DtypeError, ShapeError
from yupana.graphlib.kernels.convert import bf16_to_f32, f32_to_bf16
from yupana.graphlib.op import REGISTRY
from yupana.graphlib.sampler import Sampler, random_numbers

NAMES = list(quants.FORMATS)
KEPT: list[Any] = []  # memory that addresses point to


def leaf_of(name: str, values: Any) -> yp.Tensor:
    leaf = yp.Context().leaf(values.shape, name)
    return leaf.set(values)


def close(got: Any, want: Any, tolerance: float = 2e-6) -> bool:
    return float(np.abs(got - want).max()) <= tolerance * float(np.abs(want).max())


def test_a_leaf_holds_the_bytes_of_its_rows() -> None:
    x = np.random.default_rng(4).normal(size=(6, 512)).astype(np.float32)
    leaf = leaf_of("Q5_K", x)
    assert leaf.nbytes == 6 * 2 * 176
    assert leaf.data.shape == (6, 2 * 176)
    assert leaf.strides == (2 * 176, 176)
    assert leaf.nb == (176, 352, 6 * 352, 6 * 352)
    np.testing.assert_array_equal(leaf.data, quants.quantize(x, "Q5_K"))
    np.testing.assert_array_equal(leaf.numpy(), quants.dequantize(leaf.data, "Q5_K"))
    np.testing.assert_array_equal(leaf[1:5:2].numpy(), leaf.numpy()[1:5:2])
    np.testing.assert_array_equal(leaf.reshape((3, 4, 256)).numpy().reshape(6, 512), leaf.numpy())
    mapped = yp.Context().wrap(np.frombuffer(leaf.data.tobytes(), np.uint8).reshape(6, -1), "Q5_K")
    assert mapped.shape == leaf.shape
    np.testing.assert_array_equal(mapped.numpy(), leaf.numpy())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda w: yp.Context().leaf((4, 100), "Q4_0"), r"\(4, 100\), want .* multiple of 32"),
        (lambda w: w.reshape((-1, 16)), r"\(8, 16\), want .* multiple of 32"),
        (lambda w: w.T, "mul_mat"),
        (lambda w: w[:, 32:], "cannot look into rows of Q4_0"),
        (lambda w: w[:, 3], "cannot look into rows"),
        (lambda w: w.permute((1, 0)), "cannot look into rows"),
        (lambda w: yp.ops.view(w, (2, 32)), "cannot look into rows"),
        (lambda w: w + w, "want a float type"),
        (lambda w: w.silu(), "want a float type"),
        (lambda w: yp.Context().param((4, 32), "Q4_0"), "must be a float type"),
    ],
)
def test_what_quantised_tensors_cannot_do_is_said(wrong: Any, words: str) -> None:
    with pytest.raises(yp.YupanaError, match=words):
        wrong(leaf_of("Q4_0", np.ones((4, 32), np.float32)))


def test_memory_that_does_not_fit_is_refused() -> None:
    context = yp.Context()
    with pytest.raises(ShapeError, match=r"\(2, 19\) bytes, want .* multiple of 18"):
        context.wrap(np.zeros((2, 19), np.uint8), "Q4_0")
    with pytest.raises(DtypeError, match="float32, want uint8 for Q4_0"):
        context.wrap(np.zeros((2, 18), np.float32), "Q4_0")
    with pytest.raises(ShapeError, match="without gaps"):
        context.wrap(np.zeros((4, 36), np.uint8)[:, :18], "Q4_0")
    with pytest.raises(ShapeError, match="without gaps"):
        context.wrap(np.zeros(9, np.uint8)[1:].view(np.float32))
    assert not list(context)
    read_only = np.frombuffer(bytes(36), np.uint8)
    assert not context.wrap(read_only, "Q4_0", name="w").numpy().any()
    assert "w" in context


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 17, 200])
def test_products_are_those_with_the_expanded_matrix(name: str, rows: int) -> None:
    rng = np.random.default_rng(5)
    w = leaf_of(name, rng.normal(size=(37, 768)).astype(np.float32))
    x = rng.normal(size=(rows, 768)).astype(np.float32)
    g = rng.normal(size=(37, rows)).astype(np.float32)
    expanded = w.numpy().astype(np.float64)
    assert close(yp.ops.mul_mat(w, yp.tensor(x)).numpy(), x @ expanded.T)
    assert close(yp.ops.out_prod(w, yp.tensor(g)).numpy(), g.T @ expanded)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
def test_products_may_round_both_sides_to_bf16(name: str) -> None:
    rng = np.random.default_rng(5)
    w = leaf_of(name, rng.normal(size=(38, 768)).astype(np.float32))
    x, g = yp.tensor(rng.normal(size=(60, 768))), yp.tensor(rng.normal(size=(38, 60)))
    products = [yp.ops.mul_mat(w, x), yp.ops.out_prod(w, g)]
    program = yp.Graph(products).compile(matmul="bf16")
    program.run()
    expanded, left, right = (bf16_to_f32(f32_to_bf16(t.numpy())).astype(float) for t in (w, x, g))
    assert close(program.value(products[0]), left @ expanded.T)
    assert close(program.value(products[1]), right.T @ expanded)


def test_a_large_matrix_is_never_expanded_as_a_whole() -> None:
    """8 MiB in float32; the plan of product and gradient has no block of that size."""
    w = leaf_of("Q4_0", np.random.default_rng(6).normal(size=(4096, 512)).astype(np.float32))
    context = yp.Context()
    x = context.param((64, 512))
    x.set(np.random.default_rng(7).normal(size=(64, 512)))
    loss = yp.ops.mul_mat(w, x).sqr().sum()
    graph = yp.Graph([loss])
    grad = graph.backward(loss)[x]
    assert max(block.size for block in graph.plan().blocks) < 5 << 20
    graph.compile(threads=2).run()
    expanded = w.numpy().astype(np.float64)
    assert close(grad.numpy(), 2 * (x.numpy() @ expanded.T) @ expanded, 1e-5)


def test_gradients_flow_through_a_quantised_copy_as_if_nothing_were_rounded() -> None:
    rng = np.random.default_rng(8)
    context = yp.Context()
    w = context.param((8, 64))
    w.set(rng.normal(size=(8, 64)))
    x = context.tensor(rng.normal(size=(5, 64)))
    loss = yp.ops.mul_mat(yp.ops.cast(w, "Q8_0"), x).sum()
    graph = yp.Graph([loss])
    grad = graph.backward(loss)[w]
    graph.compile().run()
    assert close(grad.numpy(), np.ones((5, 8)).T @ x.numpy())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 3, 4, 9, 40])
def test_products_of_two_quantised_matrices_are_exact_in_their_levels(name: str, rows: int) -> None:
    rng = np.random.default_rng(9)
    w = leaf_of(name, rng.normal(size=(33, 1024)).astype(np.float32))
    x = leaf_of("Q8_0", rng.normal(size=(2, rows, 1024)).astype(np.float32))
    want = x.numpy().astype(np.float64) @ w.numpy().astype(np.float64).T
    assert close(yp.ops.mul_mat(w, x).numpy(), want)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q6_K"])
def test_extreme_levels_do_not_overflow(name: str) -> None:
    fmt = quants.FORMATS[name]
    w = yp.Context().leaf((2, 4 * fmt.block), name)
    w.data[...] = 0xFF  # all bits set, but for the scales
    half = np.frombuffer(np.float16(1.0).tobytes(), np.uint8)
    at = 208 if name == "Q6_K" else 0
    w.data.reshape(-1, fmt.nbytes)[:, at : at + 2] = half
    x = leaf_of("Q8_0", np.full((1, 4 * fmt.block), -127.0, np.float32))
    want = x.numpy().astype(np.float64) @ w.numpy().astype(np.float64).T
    assert close(yp.ops.mul_mat(w, x).numpy(), want)


def test_a_quantised_right_operand_wants_a_quantised_left_one() -> None:
    x = leaf_of("Q8_0", np.ones((1, 32), np.float32))
    with pytest.raises(DtypeError, match=r"cast\(x, 'f32'\)"):
        yp.ops.mul_mat(yp.tensor(np.ones((4, 32))), x)
    with pytest.raises(DtypeError, match=r"cast\(x, 'f32'\)"):
        yp.ops.mul_mat(x, leaf_of("Q4_0", np.ones((1, 32), np.float32)))
    with pytest.raises(DtypeError, match=r"cast\(x, 'f32'\)"):
        yp.ops.out_prod(x, x)


@pytest.mark.parametrize("shape", [(4, 32), (40, 256)])
def test_a_residual_is_added_to_quantised_products(shape: tuple[int, int]) -> None:
    """The fused kernels take it as they do for float32."""
    rng = np.random.default_rng(10)
    w = leaf_of("Q5_1", rng.normal(size=(48, shape[1])).astype(np.float32))
    x = yp.tensor(rng.normal(size=shape).astype(np.float32))
    r = yp.tensor(rng.normal(size=(shape[0], 48)).astype(np.float32))
    for activations in (x, yp.ops.cast(x, "Q8_0")):
        y = yp.ops.mul_mat(w, activations) + r
        results = []
        for fuse in (True, False):
            program = yp.Graph([y]).compile(threads=1, fuse=fuse)
            program.run()
            results.append(program.value(y))
        assert close(results[0], results[1])
        assert close(results[0], activations.numpy().astype(float) @ w.numpy().T + r.numpy())


def test_add_with_cast_expands_a_quantised_operand_or_keeps_its_type() -> None:
    rng = np.random.default_rng(11)
    w = leaf_of("Q4_1", rng.normal(size=(6, 64)).astype(np.float32))
    context = yp.Context()
    update = context.param((6, 64))
    update.set(rng.normal(size=(6, 64)))
    total = yp.ops.add_cast(w, update)
    np.testing.assert_array_equal(total.numpy(), w.numpy() + update.numpy())
    again = yp.ops.add_cast(w, update, w.dtype)
    assert again.dtype is w.dtype
    want = quants.quantize(total.numpy(), "Q4_1")
    np.testing.assert_array_equal(again.numpy(), quants.dequantize(want, "Q4_1"))
    loss = (total * total).sum()
    graph = yp.Graph([loss])
    grad = graph.backward(loss)[update]
    graph.compile().run()
    assert close(grad.numpy(), 2 * total.numpy())


def test_quantised_tables_give_rows_and_nan_outside() -> None:
    table = leaf_of("Q6_K", np.random.default_rng(12).normal(size=(5, 256)).astype(np.float32))
    rows = yp.ops.get_rows(table, yp.tensor([4, 0, 7])).numpy()
    np.testing.assert_array_equal(rows[:2], table.numpy()[[4, 0]])
    assert np.isnan(rows[2]).all()


def test_copies_within_a_type_keep_every_byte() -> None:
    """Rounding a second time would change levels."""
    w = leaf_of("Q3_K", np.random.default_rng(13).normal(size=(4, 6, 512)).astype(np.float32))
    for seen in (w[1:3, ::2], w.permute((1, 0, 2)), w[2]):
        copy = yp.ops.cont(seen)
        yp.Graph([copy]).compile().run()
        np.testing.assert_array_equal(copy.data, seen.data)
    cache = leaf_of("Q3_K", np.zeros((9, 512), np.float32))
    yp.Graph([yp.ops.cpy(w[3], cache[2:8])]).compile().run()
    np.testing.assert_array_equal(cache.data[2:8], w.data[3])
    assert not cache.numpy()[[0, 1, 8]].any()


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages by mprotect")
@pytest.mark.parametrize("target", ["", *TARGETS])
def test_other_processors_agree_and_nothing_beyond_is_read(
    target: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if target and platform.machine() != "x86_64":
        pytest.skip("for other x86 processors")
    names, cache = NAMES, None
    if target:
        names = ["Q5_1" if target == "AVX2" else "Q4_K"]  # compiled anew, so not all
        cache = shared_cache(tmp_path_factory, target)
    chosen = " or ".join(f"at_edge[{name}]" for name in names)
    arguments = ("-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", __file__, "-k", chosen)
    done = in_process(*arguments, target=target, cache=cache, TARGET=target)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f"{len(names)} passed" in done.stdout


@pytest.mark.skipif("TARGET" not in os.environ, reason="runs in a process of its own")
@pytest.mark.parametrize("name", NAMES)
def test_at_edge(name: str) -> None:
    """Operands end where a page begins that may not be touched."""
    rng = np.random.default_rng(14)
    values = rng.normal(size=(19, 512)).astype(np.float32)
    stored = quants.quantize(values, name)
    w = at_page_end(name, stored)
    expanded = quants.dequantize(stored, name)
    np.testing.assert_array_equal(yp.ops.cast(w, "f32").numpy(), expanded)
    x = at_page_end("f32", values)
    copied = yp.ops.cast(x, name)
    yp.Graph([copied]).compile().run()
    np.testing.assert_array_equal(copied.data, stored)
    for rows in (1, 7, 19):
        y = yp.ops.mul_mat(w, x[:rows])
        assert close(y.numpy(), values[:rows] @ expanded.T.astype(float))
    for kind in ("Q8_0", "Q8_K"):
        levels = quants.quantize(values[:7], kind)
        xq = at_page_end(kind, levels)
        want = quants.dequantize(levels, kind) @ expanded.T.astype(float)
        assert close(yp.ops.mul_mat(w, xq).numpy(), want)
    lowest = quants.quantize(np.ones((5, 512), np.float32), "Q8_0").reshape(5, 16, 34)
    lowest[..., 2:] = 128  # -128, which rounding never gives: no sum of products may overflow
    for left in (w, at_page_end("Q8_0", lowest.reshape(5, -1))):
        right = at_page_end("Q8_0", lowest.reshape(5, -1))
        numbers = (yp.ops.cast(leaf, "f32").numpy().astype(float) for leaf in (right, left))
        want = next(numbers) @ next(numbers).T
        assert close(yp.ops.mul_mat(left, right).numpy(), want)


def at_page_end(name: str, stored: Any) -> yp.Tensor:
    """A leaf whose memory ends where a page begins that may not be touched."""
    pages = -(-stored.nbytes // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    KEPT.append(memory)
    end = pages * mmap.PAGESIZE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + end
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 0) == 0
    place = np.frombuffer(memory, stored.dtype, stored.size, end - stored.nbytes)
    place = place.reshape(stored.shape)
    place[...] = stored
    return yp.Context().wrap(place, name)


def test_every_op_that_does_not_say_so_refuses_quantised_operands() -> None:
    """What the rules of the registry let through is what this module's subject can do."""
    taking: set[str] = set()
    for op in REGISTRY.values():
        rng = np.random.default_rng(15)
        for _ in range(12):
            call = op.samples(Sampler(random_numbers(rng)))
            for k, drawn in enumerate(call.args):
                if not isinstance(drawn, yp.Tensor) or drawn.ndim == 0:
                    continue
                arguments = list(call.args)
                shape = (*drawn.shape[:-1], 32)
                for j, other in enumerate(arguments):
                    if isinstance(other, yp.Tensor) and other.shape == drawn.shape:
                        arguments[j] = yp.tensor(np.ones(shape))
                arguments[k] = leaf_of("Q8_0", np.ones(shape, np.float32))
                with contextlib.suppress(yp.YupanaError):
                    op(*arguments, **call.kwargs)
                    taking.add(op.name)
    views = {"reshape", "permute", "slice", "detach"}
    losses = {"linear_cross_entropy", "linear_cross_entropy_back"}
    others = {"add", "cast", "cont", "cpy", "get_rows", "set_rows"}
    assert taking - views - losses == others | {"mul_mat", "out_prod", "flash_attn_cells"}


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q5_K"])
def test_what_is_added_to_a_quantised_tensor_is_stored_as_its_type(name):
    rng = np.random.default_rng(3)
    w, row = yp.tensor(rng.normal(size=(3, 512)), name), rng.normal(size=512).astype("f4")
    total = w + row
    assert total.dtype is w.dtype
    want = quants.quantize(w.numpy() + row, name)
    np.testing.assert_array_equal(total.numpy(), quants.dequantize(want, name))
    b = yp.Context().param((512,), name="b").set(row)
    loss = ((w + b).cast("f32") * 2.0).sum()
    graph = yp.Graph(loss)
    grads = graph.backward(loss)
    graph.compile().run()
    np.testing.assert_array_equal(grads[b].numpy(), np.full(512, 6.0))
    with pytest.raises(DtypeError, match=f"got {name}"):
        yp.tensor(row) + w
