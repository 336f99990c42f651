"""The prover and the reference executor must notice faults, or their silence means nothing."""

import dataclasses
import sys
import types

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib import compare, ops
from yupana.graphlib.check import CheckError, check_errors, check_op, check_property
from yupana.graphlib.errors import GraphError, ShapeError, YupanaError
from yupana.graphlib.kernels.elementwise import Map
from yupana.graphlib.op import REGISTRY, ErrorSample, Op, Result, call, op
from yupana.graphlib.ops._rules import lower_map
from yupana.graphlib.reference import run_reference
from yupana.graphlib.sampler import Sampler, random_numbers, redraw, source_of


def changed(name: str, **fields) -> Op:
    """A record with some fields replaced; the registry keeps the true one."""
    return dataclasses.replace(REGISTRY[name], **fields)


def test_a_sound_op_passes():
    report = check_op("mul", examples=5)
    assert set(report.worst) >= {"forward", "gradient", "memory", "threads"}
    assert all(worst <= 1 for worst in report.worst.values())
    assert "mul: 5 calls" in str(report)


def test_an_unknown_name_is_refused():
    with pytest.raises(CheckError, match="no op of this name: got 'mull'"):
        check_op("mull")


def test_a_kernel_wrong_by_one_part_in_a_thousand_is_caught():
    kernel = Map(lambda a, b, p0, p1, p2, p3: a * b * real(1.001), 2)  # noqa: F821
    with pytest.raises(CheckError, match=r"mul.* differs from the reference"):
        check_op(changed("mul", lower=lower_map(kernel)))


def test_a_kernel_wrong_in_one_element_of_many_is_caught():
    def lower(site):
        *first, last = REGISTRY["sum_rows"].lower(site)
        return [*first, dataclasses.replace(last, chunks=max(last.chunks - 1, 1))]

    with pytest.raises(CheckError, match=r"sum_rows.* of \d+ elements wrong"):
        check_op(changed("sum_rows", lower=lower))


def test_a_kernel_that_ignores_strides_is_caught():
    def lower(site):
        src = dataclasses.replace(site.srcs[0], strides=site.dst.strides)
        return REGISTRY["sqr"].lower(_SiteWith(site, (src,)))

    with pytest.raises(CheckError, match="differs from the reference"):
        check_op(changed("sqr", lower=lower))


class _SiteWith:
    def __init__(self, site, srcs):
        self.dst, self.srcs, self.params = site.dst, srcs, site.params


@pytest.mark.parametrize("source", [0, 1])
def test_a_gradient_wrong_by_one_part_in_a_thousand_is_caught(source):
    right = REGISTRY["mul"].vjp
    wrong = list(right)
    wrong[source] = lambda y, g: ops.scale(right[source](y, g), 1.001)
    with pytest.raises(CheckError, match="wrong gradient"):
        check_op(changed("mul", vjp=tuple(wrong)))


def test_a_gradient_that_is_no_derivative_passes_where_the_record_says_so():
    straight_through = {"vjp": (lambda y, g: g,)}
    with pytest.raises(CheckError, match="wrong gradient"):
        check_op(changed("round", **straight_through), examples=5)
    check_op(changed("round", **straight_through, grad_check=False), examples=5)


@pytest.mark.parametrize(("factor", "is_right"), [(3.0, True), (2.0, False)])
def test_tolerance_may_depend_on_the_call(factor, is_right):
    kernel = Map(lambda x, s, p1, p2, p3: x * s * real(1.0001), 1)  # noqa: F821
    scale = changed(
        "scale",
        lower=lower_map(kernel, ("s",)),
        samples=lambda d: call(d.floats((4,)), factor),
        tolerance=lambda y: 1e9 if y.params["s"] == 3 else 1.0,
    )
    if is_right:
        assert check_property(scale, "forward", [0] * 40) <= 1
    else:
        with pytest.raises(CheckError, match="differs from the reference"):
            check_property(scale, "forward", [0] * 40)


def test_a_gradient_that_needs_a_contiguous_one_is_caught():
    def rule(y, g):
        return ops.reshape(ops.reshape(g, (-1,)), g.shape)

    with pytest.raises(CheckError, match="not contiguous"):
        check_op(changed("cont", vjp=(rule,)))


def test_a_wrong_reference_is_caught():
    with pytest.raises(CheckError, match="differs from the reference"):
        check_op(changed("tanh", reference=lambda x: np.tanh(x) * 1.001))


def test_a_view_whose_reference_sees_other_elements_is_caught():
    with pytest.raises(CheckError, match="see other elements"):
        check_op(
            changed("transpose", reference=lambda x: x.reshape(*x.shape[:-2], *x.shape[:-3:-1]))
        )


def test_taking_over_memory_that_is_still_read_is_caught():
    # Two steps, both from the source: the second finds the first one's result there.
    def lower(site):
        return [*REGISTRY["scale"].lower(site), *REGISTRY["scale"].lower(site)]

    with pytest.raises(CheckError, match="other bits with"):
        check_op(changed("scale", lower=lower, samples=lambda d: call(d.floats(d.shape()), 3.0)))


def test_counting_on_memory_that_is_zero_is_caught():
    def lower(site):
        added = _SiteWith(site, (site.dst, site.srcs[0]))
        return REGISTRY["add"].lower(added)

    with pytest.raises(CheckError, match=r"cont.* differs from the reference"):
        check_op(changed("cont", lower=lower))


def test_a_write_to_a_source_is_caught():
    def lower(site):
        swapped = _SiteWith(site, (site.dst,))
        swapped.dst = site.srcs[0]
        return [*REGISTRY["neg"].lower(site), *REGISTRY["cont"].lower(swapped)]

    with pytest.raises(CheckError, match="changed a leaf"):
        check_op(changed("neg", lower=lower))


def test_a_rule_with_the_wrong_shape_is_caught():
    op = changed("sum_rows", rule=lambda x: Result((x,), (*x.shape[:-1], 2), x.dtype))
    with pytest.raises(CheckError, match="as its rule says"):
        check_op(op)


def test_a_promised_error_that_does_not_come_is_caught():
    nothing = ErrorSample(lambda: None, ShapeError, "words")
    with pytest.raises(CheckError, match="raised nothing"):
        check_errors(changed("add", error_samples=lambda: [nothing]))


def test_a_promised_error_with_other_words_is_caught():
    samples = REGISTRY["add"].error_samples()
    samples[0] = dataclasses.replace(samples[0], words="nonsense")
    with pytest.raises(CheckError, match="with the words 'nonsense'"):
        check_errors(changed("add", error_samples=lambda: samples))


def test_the_call_named_is_small_and_runs_as_pasted():
    kernel = Map(lambda a, b, p0, p1, p2, p3: a - b * real(1.001), 2)  # noqa: F821
    with pytest.raises(CheckError) as caught:
        check_op(changed("sub", lower=lower_map(kernel)))
    source = str(caught.value).splitlines()[-1].removeprefix("Call: ")
    node = eval(source, {"yp": yp, "np": np})
    assert node.op is REGISTRY["sub"]
    assert node.size <= 2


def test_the_call_named_has_no_more_axes_than_it_needs():
    right = REGISTRY["mul"].vjp
    with pytest.raises(CheckError, match="with respect to source 1") as caught:
        check_op(changed("mul", vjp=(right[0], lambda y, g: g * y.srcs[1])))
    source = str(caught.value).splitlines()[-1].removeprefix("Call: ")
    assert eval(source, {"yp": yp, "np": np}).ndim <= 1


def test_ops_outside_the_library_are_named_where_they_are():
    def half(x, factor):
        """y = factor · x."""

    half.__module__, theirs = "their_ops", types.ModuleType("their_ops")
    theirs.halved = changed("scale", rule=half)
    drawn = call(yp.tensor([1.0]), 0.5)
    assert source_of(theirs.halved, drawn).startswith("their_ops.scale(yp.tensor([1.0]")
    sys.modules["their_ops"] = theirs
    try:
        assert source_of(theirs.halved, drawn).startswith("their_ops.halved(")
    finally:
        del sys.modules["their_ops"]
    half.__module__ = "__main__"
    assert source_of(theirs.halved, drawn) == "scale(yp.tensor([1.0], 'f32'), 0.5)"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rule": lambda a, b: a}, "mul: its rule gave Tensor, want a Result"),
        ({"samples": lambda d: (d.floats((2,)),)}, "mul: its samples gave tuple, want a Call"),
        ({"vjp": (None,)}, "mul: got 1 gradient rules for 2 sources, want one for each"),
        ({"vjp": (lambda y, g: None,) * 2}, "mul: the rule for source 0 gave NoneType, want a"),
    ],
)
def test_records_that_are_no_records_are_explained(fields, words):
    with pytest.raises(YupanaError) as caught:
        check_op(changed("mul", **fields))
    assert str(caught.value).startswith(words)


def test_gradient_rules_are_a_tuple():
    with pytest.raises(YupanaError, match="got function as vjp, want a tuple"):
        op(name="untied", reference=abs, samples=call, vjp=lambda y, g: g)(lambda x: x)


def test_a_call_drawn_again_is_the_same_call():
    sampler = Sampler(random_numbers(np.random.default_rng(3)))
    op = REGISTRY["mul_mat"]
    first = op.samples(sampler)
    again, _ = redraw(op, sampler.trace)
    assert source_of(op, first) == source_of(op, again)
    for a, b in zip(first.args, redraw(op, sampler.trace, dtype="f64")[0].args, strict=True):
        assert (b.shape, b.dtype.name) == (a.shape, "f64")


def test_reference_leaves_data_alone_unless_asked():
    cache = yp.tensor([0.0, 0.0])
    new = ops.cpy(yp.tensor([1.0, 2.0]), cache)
    assert run_reference(new)[cache].tolist() == [1.0, 2.0]
    assert cache.data.tolist() == [0.0, 0.0]
    run_reference(new, write_back=True)
    assert cache.data.tolist() == [1.0, 2.0]


def test_reference_shows_a_write_to_later_readers_only():
    cache = yp.tensor([1.0, 2.0, 3.0])
    before = cache * 10.0
    part = cache[1:]
    new = ops.cpy(yp.tensor([7.0, 8.0]), part)
    after, through_view = cache * 10.0, part * 10.0
    values = run_reference([after, through_view, before, new])
    assert values[before].tolist() == [10.0, 20.0, 30.0]
    assert values[after].tolist() == [10.0, 70.0, 80.0]
    assert values[through_view].tolist() == [70.0, 80.0]


def test_reference_takes_fed_values_and_refuses_those_that_do_not_fit():
    x = yp.tensor([1.0, 2.0])
    y = ops.sqr(x)
    assert run_reference(y, {x: [3.0, 4.0]})[y].tolist() == [9.0, 16.0]
    assert x.data.tolist() == [1.0, 2.0]
    with pytest.raises(ShapeError, match=r"got \(3,\), want \(2,\)"):
        run_reference(y, {x: [1.0, 2.0, 3.0]})
    with pytest.raises(GraphError, match="leaves only"):
        run_reference(ops.sqr(y), {y: [1.0, 2.0]})


def test_reference_refuses_a_reference_that_writes_to_its_arguments():
    def reference(x):
        x *= 2
        return x

    y = changed("scale", reference=lambda x, s: reference(x))(yp.tensor([1.0]), 2.0)
    with pytest.raises(ValueError, match="read-only"):
        run_reference(y)


def test_reference_computes_in_float64_whatever_the_dtypes():
    x = yp.tensor([0.1], "f16")
    total = x
    for _ in range(50):
        total = total + x
    exact = 51 * float(x.numpy()[0])
    assert run_reference(total)[total][0] == pytest.approx(exact, rel=1e-14)


def test_deviations_are_known_well_enough_before_an_element_is_called_wrong():
    context = yp.Context()
    ones = np.ones((2000, 16), np.float32)
    total = ops.sum_rows(context.tensor(ones))
    values = {total: ones.sum(axis=1, keepdims=True).astype(np.float64)}
    first, second = (compare.rounding_noise([total], values, n)[total] for n in (1, 12))
    assert first.min() < 0.5 * np.median(first), "by chance, of thousands of elements alike"
    assert second.min() > 0.7 * np.median(second)


def test_an_edge_beside_the_point_is_no_wrong_gradient():
    """The larger of two elements that the steps of a central difference exchange."""

    def nearly_alike(d):
        x = d.floats((2, 1), dtypes=("f32",), layouts=("contiguous",))
        d.leaves[-1].set([[1.0], [1.0 + 2.0**-23]])
        return call(x, "max", (2, 1))

    assert check_op(changed("pool_2d", samples=nearly_alike), examples=3).worst["gradient"] < 1
