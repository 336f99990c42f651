"""The strategies that `yupana.testing` offers, as a user's test would take them."""

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

import yupana as yp
from yupana.testing import arrays, calls, graphs, samplers


@given(st.data())
def test_arrays_keep_to_their_domain_dtypes_and_shape(data):
    x = data.draw(arrays((3, 4), 0.5, 2.0, dtypes=("f64", "f16")))
    values = x.numpy()
    assert x.shape == (3, 4)
    assert x.dtype.name in ("f64", "f16")
    assert ((values >= 0.5) & (values <= 2.0)).all()


@pytest.mark.parametrize(
    "wanted",
    [
        lambda x: x.size == 0,
        lambda x: x.ndim == 0,
        lambda x: x.ndim == 4 and x.size > 1,
        lambda x: max(x.shape, default=0) > 60,
        lambda x: not x.is_contiguous,
        lambda x: x.view_offset > 0,
        lambda x: -3.0 in x.numpy(),
        lambda x: 0.0 in x.numpy(),
    ],
    ids=["empty", "number", "four axes", "long", "strides", "offset", "end of range", "zero"],
)
def test_arrays_reach_what_breaks_code(wanted):
    find(arrays(), wanted)


def test_layouts_are_those_asked_for():
    assert find(arrays((2, 3), layouts=("transposed",)), lambda x: True).strides == (4, 8)
    assert find(arrays((2, 3), layouts=("contiguous",)), lambda x: True).is_contiguous


@given(calls(yp.ops.add))
def test_calls_print_as_source_that_records_them_again(call):
    here = call.record()
    if here.size > 300:  # the shortest text of thousands of numbers takes its time
        return
    again = eval(repr(call), {"yp": yp, "np": np})
    assert again.op is here.op is yp.ops.add
    assert (again.shape, again.dtype) == (here.shape, here.dtype)
    np.testing.assert_array_equal(again.numpy(), here.numpy())


@given(calls(yp.ops.mul_mat, dtype="f64"))
def test_calls_take_the_options_of_a_sampler(call):
    assert {src.dtype.name for src in call.record().srcs if src.dtype.is_float} <= {"f64"}


def test_a_failing_call_becomes_small():
    call = find(calls(yp.ops.scale), lambda call: call.record().size > 2)
    assert call.record().size <= 4


@given(graphs())
def test_graphs_have_a_loss_of_their_parameters(drawn):
    assert drawn.loss.size == 1
    leaves = yp.Graph(drawn.loss).leaves
    assert any(param in leaves for param in drawn.params)


@given(samplers(dtype="f16"))
def test_samplers_draw_as_hypothesis_decides(d):
    assert 2 <= d.integer(2, 5) <= 5
    assert d.floats(d.shape()).dtype.name == "f16"


def test_what_fails_is_shown_as_source():
    @settings(database=None, derandomize=True)
    @given(calls(yp.ops.add), arrays((2,)))
    def fails(call, x):
        raise AssertionError

    with pytest.raises(AssertionError) as caught:
        fails()
    shown = "\n".join(caught.value.__notes__)
    assert "call=yp.ops.add(yp.tensor(" in shown
    assert "drawn: yp.tensor([" in shown
