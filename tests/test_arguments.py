"""Calls of ops with things that are no tensors, numbers or shapes: errors that say which."""

import numpy as np
import pytest

import yupana as yp
from yupana import ops
from yupana.graphlib.op import REGISTRY

X = yp.tensor(np.ones((2, 3)))
ODD = [
    None,
    "x",
    3.5,
    (1.5, 2),
    np.ones((2, 3)),
    yp.tensor(np.ones((2, 4))),
    yp.tensor(np.ones((2, 2, 4)), "f16"),
    yp.tensor([1, 2]),
]


@pytest.mark.parametrize("name", REGISTRY)
def test_a_wrong_argument_is_an_error_of_the_library_or_of_the_signature(name):
    for odd in ODD:
        for arguments in [(odd,), (X, odd), (odd, X), (X, X, odd), (X, odd, odd)]:
            message = refusal(name, arguments)
            assert message.startswith((name.partition("_packed")[0], "dtype: ")), message


def refusal(name, arguments):
    """What a call is refused with by the library, or by Python; the op's name where it is not."""
    try:
        REGISTRY[name](*arguments)
    except yp.YupanaError as error:
        return str(error)
    except TypeError as error:
        return name if "positional argument" in str(error) else f"raw {error}"
    return name


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: ops.sum(np.ones(3)), "sum: got ndarray as x, want Tensor. Make one with"),
        (lambda: ops.add(X, None), "add: got None as b, want Tensor"),
        (lambda: ops.concat(X, 3.0), "concat: got 3.0 as parts, want Tensor"),
        (lambda: ops.soft_max(X, np.ones(3)), "soft_max: got ndarray as mask, want Tensor | None"),
        (lambda: ops.repeat(X, "ab"), "repeat: got shape 'ab', want whole numbers."),
        (lambda: ops.permute(X, 1.5), "permute: got 1.5 as axes, want tuple[int, ...]"),
        (lambda: ops.scale(X, None), "scale: got None as s, want float"),
    ],
)
def test_it_is_named_with_what_was_wanted(run, words):
    with pytest.raises(yp.YupanaError) as caught:
        run()
    assert str(caught.value).startswith(words)


def test_a_fault_of_a_rule_stays_what_it_is():
    def rule(x: yp.Tensor) -> None:
        """An op of the test."""
        raise AttributeError("of the rule")

    faulty = yp.op(name="faulty", reference=abs, samples=lambda d: None)(rule)
    with pytest.raises(AttributeError, match="of the rule"):
        faulty(X)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: yp.MemoryBudget("1G"), "MemoryBudget: nbytes: got '1G', want a whole number"),
        (lambda: yp.MemoryBudget(-1), "MemoryBudget: nbytes is out of range: got -1"),
        (lambda: yp.MemoryBudget(1, "x"), "MemoryBudget: spare: got 'x', want a number"),
        (lambda: yp.Context().leaf(3.5), "leaf: got shape 3.5, want whole numbers"),
        (lambda: yp.Context().leaf((2, "x")), "leaf: got shape (2, 'x'), want whole numbers"),
        (lambda: yp.Context().leaf(None), "leaf: got shape None, want whole numbers"),
        (lambda: yp.Graph(None), "Graph: got NoneType as output, want a Tensor"),
        (lambda: yp.Graph(3), "Graph: got int as output, want a Tensor"),
        (lambda: yp.Graph(X.sum()).compile(threads="a"), "compile: threads: got 'a', want a whole"),
        (lambda: yp.tensor([[1], [1, 2]]), "tensor: the values make no array"),
        (lambda: yp.Context().leaf((2,)).set([[1], [1, 2]]), "set: the values make no array"),
    ],
)
def test_what_is_no_size_number_or_array_is_told(run, words):
    with pytest.raises(yp.YupanaError) as caught:
        run()
    assert str(caught.value).startswith(words)
