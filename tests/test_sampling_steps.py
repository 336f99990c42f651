"""Each sampler against its formula, written out with loops over Python's numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.models import sampling_math, sampling_steps
from yupana.models.sampling_penalties import dry, penalties
from yupana.models.sampling_steps import Candidates

SCORES = st.lists(
    st.floats(-30, 30, allow_nan=False).map(lambda x: round(x, 3)), min_size=1, max_size=12
)
SHARES = st.integers(1, 99).map(lambda k: k / 100)
KEEP = st.integers(0, 4)


def candidates(scores) -> Candidates:
    return Candidates(np.arange(len(scores)), np.array(scores, np.float64))


def kept(c: Candidates) -> list[int]:
    return c.ids.tolist()


def ranked(scores) -> tuple[list[int], list[float]]:
    """Ids, the best first, and their probabilities."""
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    powers = [math.exp(scores[k] - max(scores)) for k in order]
    return order, [p / math.fsum(powers) for p in powers]


def clear(*margins: float) -> bool:
    """No comparison of the reference is closer than rounding explains."""
    return all(abs(m) > 1e-9 for m in margins)


@given(SCORES, st.integers(0, 14))
def test_top_k(scores, k):
    expected = ranked(scores)[0]
    got = sampling_steps.top_k(candidates(scores), k)
    if 0 < k < len(scores):
        assert kept(got) == expected[:k]
        assert kept(sampling_steps.top_k(candidates(scores).best_first(), k)) == expected[:k]
    else:
        assert sorted(kept(got)) == sorted(expected)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_top_k_of_a_large_vocabulary(k):
    rng = np.random.default_rng(k)
    for size in (64 * 40, 64 * 41 + 3, 5000):
        scores = rng.integers(-30, 30, size) / 2  # many are equal
        expected = sorted(range(size), key=lambda t: -scores[t])[:k]
        assert kept(sampling_steps.top_k(candidates(scores), k)) == expected


@pytest.mark.parametrize("k", [1, 2, 40, 100])
def test_the_best_of_float32_are_found_as_in_a_sorted_list(k):
    rng = np.random.default_rng(k)
    for size in (k + 1, 128, 129, 1000, 5003):
        scores = rng.integers(-30, 30, max(size, k + 1)).astype(np.float32) / 2  # many are equal
        scores[rng.integers(0, len(scores), 5)] = [-0.0, 0.0, -np.inf, np.inf, 1e-45]
        order = np.argsort(-scores, kind="stable")[:k]
        places, has_nan = sampling_math.best_first(scores, k)
        assert (places.tolist(), has_nan) == (order.tolist(), False)
        for nan in (np.float32(np.nan), -np.float32(np.nan)):
            scores[rng.integers(0, len(scores))] = nan
            assert sampling_math.best_first(scores, k)[1]


@pytest.mark.parametrize(("p", "keep"), [(0.5, 0), (0.95, 3000), (0.9999, 0), (0.0, 300)])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_top_p_of_a_large_vocabulary(p, keep, spread):
    scores = spread * np.random.default_rng(1).normal(size=5000).round(2)  # some are equal
    order, chances = ranked(scores)
    sums = np.cumsum(chances)
    expected = order[: max(int(np.searchsorted(sums, p)) + 1, keep)]
    assert kept(sampling_steps.top_p(candidates(scores), p, keep)) == expected


@given(SCORES, SHARES, KEEP)
def test_top_p(scores, p, keep):
    order, chances = ranked(scores)
    count, so_far = 0, 0.0
    while count < len(order) and (so_far < p - 1e-12 or count < keep):
        so_far += chances[count]
        count += 1
    got = kept(sampling_steps.top_p(candidates(scores), p, keep))
    sums = np.cumsum(chances)
    if clear(*(sums - p)):
        assert got == order[:count]


@given(SCORES, SHARES, KEEP)
def test_min_p(scores, p, keep):
    order, chances = ranked(scores)
    expected = [t for t, q in zip(order, chances, strict=True) if q >= p * chances[0]]
    if len(expected) < keep:
        expected = order[:keep]
    if clear(*(q / chances[0] - p for q in chances)):
        assert sorted(kept(sampling_steps.min_p(candidates(scores), p, keep))) == sorted(expected)


@given(SCORES, SHARES, KEEP)
def test_tail_free(scores, z, keep):
    order, p = ranked(scores)
    got = kept(sampling_steps.tail_free(candidates(scores), z, keep))
    if len(order) <= 2:
        assert sorted(got) == sorted(order)
        return
    bends = [abs((p[i] - p[i + 1]) - (p[i + 1] - p[i + 2])) for i in range(len(p) - 2)]
    whole = math.fsum(bends)
    parts = [b / whole if whole > 1e-6 else 1 / len(bends) for b in bends]
    count, so_far = len(order), 0.0
    for i, part in enumerate(parts):
        so_far += part
        if so_far > z + 1e-12 and i >= max(keep, 1):
            count = i
            break
    if clear(*(np.cumsum(parts) - z), whole - 1e-6):
        assert got == order[:count]


@given(SCORES, SHARES, KEEP)
def test_typical(scores, p, keep):
    order, chances = ranked(scores)
    expected_surprise = -math.fsum(q * math.log(q) for q in chances)
    off = [abs(-math.log(q) - expected_surprise) for q in chances]
    places = sorted(range(len(order)), key=lambda i: off[i])
    count, so_far = 0, 0.0
    while count < len(places) and (so_far <= p or count < keep):
        so_far += chances[places[count]]
        count += 1
    got = kept(sampling_steps.typical(candidates(scores), p, keep))
    sums = np.cumsum([chances[i] for i in places])
    gaps = np.diff(sorted(set(off)))
    if clear(*(sums - p), *gaps):
        assert sorted(got) == sorted(order[i] for i in places[:count])


@given(SCORES, st.floats(0.1, 3))
def test_top_n_sigma(scores, n):
    mean = math.fsum(scores) / len(scores)
    sigma = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / len(scores))
    limit = max(scores) - n * sigma
    if clear(*(s - limit for s in scores)):
        got = kept(sampling_steps.top_n_sigma(candidates(scores), n))
        assert got == [t for t, s in enumerate(scores) if s >= limit]


@given(SCORES, SHARES, KEEP)
def test_exclude_top(scores, threshold, keep):
    order, chances = ranked(scores)
    probable = [t for t, q in zip(order, chances, strict=True) if q >= threshold]
    expected = order
    if threshold <= 0.5 and len(probable) > 1:
        rest = order[len(probable) - 1 :]
        expected = rest if len(rest) >= keep else order
    if clear(*(q - threshold for q in chances)):
        got = kept(sampling_steps.exclude_top(candidates(scores), threshold, keep))
        assert sorted(got) == sorted(expected)


def test_exclude_top_keeps_the_least_probable_of_the_probable():
    scores = np.log([0.4, 0.1, 0.3, 0.2])
    assert kept(sampling_steps.exclude_top(candidates(scores), 0.15)) == [3, 1]


@given(SCORES, st.floats(0.1, 3), st.floats(0, 3), st.floats(0, 3))
def test_temperature_follows_the_entropy(scores, start, span, exponent):
    _, chances = ranked(scores)
    temp = start
    if span > 0 and len(scores) > 1:
        share = -math.fsum(q * math.log(q) for q in chances if q > 0) / math.log(len(scores))
        low, high = max(0.0, temp - span), temp + span
        temp = low + (high - low) * max(share, 0.0) ** exponent
    if temp > 1e-6:
        got = sampling_steps.temperature(candidates(scores), start, span, exponent)
        np.testing.assert_allclose(got.scores, np.array(scores) / temp, rtol=1e-5)


def test_no_temperature_leaves_the_first_of_the_best():
    assert kept(sampling_steps.temperature(candidates([1.0, 3.0, 3.0]), 0)) == [1]
    assert kept(sampling_steps.temperature(candidates([1.0, 3.0, 2.0]), -1)) == [1]


@given(SCORES, st.floats(0.5, 12), st.integers(2, 8))
def test_mirostat_1(scores, mu, m):
    order, p = ranked(scores)
    got = kept(sampling_steps.mirostat_cut(candidates(scores), mu, len(scores), m))
    upper = lower = 0.0
    for i in range(min(m - 1, len(p) - 1)):
        t, b = math.log((i + 2) / (i + 1)), math.log(p[i] / p[i + 1])
        upper += t * b
        lower += t * t
    if upper < 1e-9 or abs(upper / lower - 1) < 1e-6:
        return  # no law, or its limit
    s = upper / lower
    k = ((s - 1) * 2**mu / (1 - len(scores) ** (1 - s))) ** (1 / s)
    if clear(k - round(k)):
        assert got == order[: max(1, min(int(k), len(order)))]


def test_mirostat_1_when_the_law_has_exponent_one():
    scores = [-math.log(rank) for rank in range(1, 9)]  # Zipf's own law
    k = int(2**3 / math.log(8))
    assert kept(sampling_steps.mirostat_cut(candidates(scores), 3.0, 8)) == list(range(k))
    assert len(sampling_steps.mirostat_cut(candidates([1.0] * 5), 3.0, 5)) == 5


@given(SCORES, st.floats(-1, 12))
def test_mirostat_2(scores, mu):
    order, chances = ranked(scores)
    expected = [t for t, q in zip(order, chances, strict=True) if -math.log2(q) <= mu]
    if clear(*(-math.log2(q) - mu for q in chances)):
        got = kept(sampling_steps.mirostat_2_cut(candidates(scores), mu))
        assert got == (expected or order[:1])


@given(
    SCORES,
    st.lists(st.integers(0, 14), max_size=20),
    st.sampled_from([0.5, 1.0, 1.3]),
    st.sampled_from([0.0, 0.25]),
    st.sampled_from([0.0, -0.5, 2.0]),
)
def test_penalties(scores, recent, repeat, frequency, presence):
    expected = list(scores)
    for token in range(len(scores)):
        if count := recent.count(token):
            if token == 1:
                continue
            x = expected[token]
            x = x * repeat if x <= 0 else x / repeat
            expected[token] = x - (count * frequency + presence)
    got = penalties(candidates(scores), recent, repeat, frequency, presence, spared=[1])
    np.testing.assert_allclose(got.scores, expected)


def test_penalties_find_tokens_that_were_sorted():
    c = candidates([1.0, 4.0, 2.0]).best_first()
    got = penalties(c, [0, 1, 7], 2.0)
    assert dict(zip(got.ids.tolist(), got.scores.tolist(), strict=True)) == {1: 2, 2: 2, 0: 0.5}
    assert kept(got.best_first()) == [1, 2, 0]


def dry_reference(scores, recent, multiplier, base, allowed, breakers):
    """The penalty by its definition: the longest repetition that each token would prolong."""
    limit = len(recent)
    for start in range(len(recent) - 1, -1, -1):  # the last breaker
        fits = [
            len(t)
            for t in breakers.get(recent[start], [])
            if tuple(recent[start + 1 :])[: len(t)] == t
        ]
        if fits:
            limit = len(recent) - 1 - start - max(fits)
            break
    result = list(scores)
    if len(recent) <= allowed or limit < allowed:
        return result
    for token in range(len(scores)):
        longest = -1
        for end in range(1, len(recent)):
            if recent[end] != token:
                continue
            n = 0
            while n < min(end, limit) and recent[end - 1 - n] == recent[len(recent) - 1 - n]:
                n += 1
            longest = max(longest, n)
        if longest >= allowed and () not in breakers.get(token, []):
            result[token] -= multiplier * base ** (longest - allowed)
    return result


@given(
    st.lists(st.integers(0, 3), max_size=24),
    st.integers(0, 3),
    st.sampled_from([1.0, 1.75]),
    st.sampled_from([{}, {3: [()]}, {2: [(3,)], 3: [(1, 1), (1,)]}]),
)
def test_dry(recent, allowed, base, breakers):
    scores = [0.0, 1.0, -1.0, 2.0]
    expected = dry_reference(scores, recent, 0.8, base, allowed, breakers)
    got = dry(candidates(scores), recent, 0.8, base, allowed, breakers)
    np.testing.assert_allclose(got.scores, expected)


def test_dry_penalises_what_would_prolong_a_repetition():
    a, b, c, y = 0, 1, 2, 3
    recent = [a, b, c, c, b, c, y, a, b, c]
    got = dry(candidates([0.0] * 4), recent, 1.0, 2.0, allowed_length=1)
    # c after "a b c", b after "c", y after "b c"
    np.testing.assert_allclose(got.scores, [0, -1, -4, -2])


@given(st.lists(st.floats(-700, 700), min_size=1))
def test_exp_is_that_of_the_library(xs):
    got = sampling_math.exp(np.array(xs))
    np.testing.assert_allclose(got, [math.exp(x) for x in xs], rtol=5e-16)


@given(st.lists(st.floats(1e-300, 1e300), min_size=1))
def test_log_is_that_of_the_library(xs):
    got = sampling_math.log(np.array(xs))
    np.testing.assert_allclose(got, [math.log(x) for x in xs], rtol=5e-16, atol=1e-17)


def test_bits_are_those_of_single_rounded_operations():
    """The same steps on Python's numbers, which no vector instruction touches."""
    m = sampling_math

    def horner(terms, x):
        result = terms[-1]
        for term in terms[-2::-1]:
            result = result * x + term
        return result

    def exp(x):
        n = round(x * m.LOG2_E)
        return math.ldexp(horner(m.EXP_TERMS, (x - n * m.LN2_HIGH) - n * m.LN2_LOW), n)

    def log(x):
        part, n = math.frexp(x)
        if part < 0.5**0.5:
            part, n = 2 * part, n - 1
        s = (part - 1) / (part + 1)
        return n * m.LN2_HIGH + (s * horner(m._LOG_TERMS, s * s) + n * m.LN2_LOW)

    xs = np.random.default_rng(3).normal(0, 20, 999)
    assert m.exp(xs).tolist() == [exp(x) for x in xs.tolist()]
    assert m.log(abs(xs)).tolist() == [log(abs(x)) for x in xs.tolist()]
    so_far = 0.0
    for x in xs.tolist():
        so_far += x
    assert m.total(xs) == so_far


@given(st.lists(st.floats(-900, 900) | st.just(-np.inf), max_size=70), st.floats(-900, 900))
def test_soft_max_is_that_of_single_operations(scores, last):
    scores = np.array([*scores, last])
    powers = sampling_math.exp(scores - scores.max())
    want = powers / sampling_math.total(powers)
    assert sampling_math.soft_max(scores).tolist() == want.tolist()


def test_soft_max_has_these_bits():
    got = sampling_math.soft_max(np.array([-0.3, -1.7, -12.25, -0.001]))
    assert [x.hex() for x in got.tolist()] == SOFT_MAX


SOFT_MAX = [
    "0x1.8a967b60da8cap-2",
    "0x1.8537754fc9239p-4",
    "0x1.4e11579d5ab8bp-19",
    "0x1.0a0d802143adfp-1",
]
