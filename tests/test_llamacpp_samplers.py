"""Each sampler on the same scores as llama.cpp's own; skipped without llama-cpp-python."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from yupana.models import sampling_steps as steps
from yupana.models.sampling_adaptive import AdaptiveP
from yupana.models.sampling_penalties import dry, find_breakers, penalties
from yupana.models.sampling_steps import Candidates

llama_cpp = pytest.importorskip("llama_cpp")
VOCABULARY = Path(__file__).parents[2] / "shared" / "data" / "ggml-vocab-llama-spm.gguf"
TEXT = 'Once upon a time there was a llama: it ate grass.\nOnce upon a time it "ran" home. '


def applied(sampler, logits, accepted=()):
    """What llama.cpp's sampler leaves, id to score, and the token it selects, if it does."""
    for token in accepted:
        llama_cpp.llama_sampler_accept(sampler, token)
    data = (llama_cpp.llama_token_data * len(logits))()
    for token, score in enumerate(logits):
        data[token].id, data[token].logit = token, score
    array = llama_cpp.llama_token_data_array(data, len(logits), -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    left = {array.data[k].id: array.data[k].logit for k in range(array.size)}
    return left, array.data[array.selected].id if array.selected >= 0 else None


def assert_same(ours, theirs):
    got = {int(i): s for i, s in zip(ours.ids, ours.scores, strict=True) if s > -np.inf}
    want = {i: s for i, s in theirs.items() if s > -np.inf}
    assert sorted(got) == sorted(want)
    tokens = sorted(want)
    np.testing.assert_allclose([got[t] for t in tokens], [want[t] for t in tokens], 1e-4, 1e-4)


def drawn(seed, most=600):
    random = np.random.default_rng(seed)
    scores = random.standard_normal(random.integers(2, most)) * random.uniform(0.2, 6)
    logits = scores.astype(np.float32)
    return random, logits, Candidates(np.arange(len(logits)), logits.astype(float), is_whole=True)


@pytest.mark.parametrize("seed", range(40))
def test_steps_that_narrow_the_choice(seed):
    random, logits, c = drawn(seed)
    k, keep = int(random.integers(0, len(c) + 5)), int(random.integers(0, 4))
    p, n = (float(np.float32(random.uniform(0.01, most))) for most in (1, 3))
    lib = llama_cpp
    assert_same(steps.top_k(c, k), applied(lib.llama_sampler_init_top_k(k), logits)[0])
    assert_same(steps.top_p(c, p, keep), applied(lib.llama_sampler_init_top_p(p, keep), logits)[0])
    assert_same(steps.min_p(c, p, keep), applied(lib.llama_sampler_init_min_p(p, keep), logits)[0])
    theirs = applied(lib.llama_sampler_init_typical(p, keep), logits)[0]
    assert_same(steps.typical(c, p, keep), theirs)
    assert_same(steps.top_n_sigma(c, n), applied(lib.llama_sampler_init_top_n_sigma(n), logits)[0])
    theirs = applied(lib.llama_sampler_init_xtc(1.0, p / 2, keep, 1), logits)[0]
    assert_same(steps.exclude_top(c, p / 2, keep), theirs)


@pytest.mark.parametrize("seed", range(40))
def test_temperatures_and_mirostat(seed):
    random, logits, c = drawn(seed)
    temp, span, power, tau = (float(random.uniform(0.3, most)) for most in (2, 1.5, 2, 4))
    lib = llama_cpp
    assert_same(steps.temperature(c, temp), applied(lib.llama_sampler_init_temp(temp), logits)[0])
    assert_same(steps.temperature(c, 0.0), applied(lib.llama_sampler_init_temp(0.0), logits)[0])
    theirs = applied(lib.llama_sampler_init_temp_ext(temp, span, power), logits)[0]
    assert_same(steps.temperature(c, temp, span, power), theirs)
    theirs = applied(lib.llama_sampler_init_mirostat_v2(1, tau, 0.1), logits)[0]
    assert_same(steps.mirostat_2_cut(c, 2 * tau), theirs)
    sharp = np.float32(3 / logits.std()) * logits  # of flatter ones theirs overflows: one is left
    c = Candidates(np.arange(len(sharp)), sharp.astype(float))
    theirs = applied(lib.llama_sampler_init_mirostat(len(sharp), 1, tau, 0.1, 100), sharp)[0]
    assert_same(steps.mirostat_cut(c, 2 * tau, len(sharp)), theirs)


@pytest.mark.parametrize("seed", range(20))
def test_adaptive_p_over_several_draws(seed):
    random = np.random.default_rng(seed)
    target, decay = float(random.uniform(0, 1)), float(random.uniform(0, 0.99))
    sampler = llama_cpp.llama_sampler_init_adaptive_p(target, decay, seed)
    ours = AdaptiveP(target, decay)
    for _ in range(8):
        logits = (random.standard_normal(20) * 2).astype(np.float32)
        c = Candidates(np.arange(20), logits.astype(float))
        theirs, token = applied(sampler, logits)
        assert_same(ours.bend(c), theirs)
        ours.drawn(token)
        llama_cpp.llama_sampler_accept(sampler, token)


@pytest.mark.parametrize("seed", range(20))
def test_penalties(seed):
    random, logits, c = drawn(seed)
    recent = random.integers(0, len(c), random.integers(1, 80)).tolist()
    last = int(random.choice([5, 64]))
    numbers = [float(x) for x in random.uniform((0.7, -1, -1), (1.6, 1, 1))]
    arguments = (len(c), last, *numbers)
    if len(llama_cpp.llama_sampler_init_penalties.argtypes) == 4:  # before 2026
        arguments = arguments[1:]
    theirs = applied(llama_cpp.llama_sampler_init_penalties(*arguments), logits, recent)[0]
    assert_same(penalties(c, recent[-last:], *numbers), theirs)


@pytest.fixture(scope="module")
def vocabulary():
    if not VOCABULARY.exists():
        pytest.skip("needs the shared vocabularies")
    theirs = llama_cpp.Llama(str(VOCABULARY), vocab_only=True, verbose=False)
    return yp.load_tokenizer(VOCABULARY), theirs


@pytest.mark.parametrize("texts", [["\n", ":", '"', "*"], []])
@pytest.mark.parametrize("seed", range(6))
def test_dry(vocabulary, texts, seed):
    tokenizer, theirs = vocabulary
    random = np.random.default_rng(seed)
    logits = random.standard_normal(len(tokenizer)).astype(np.float32)
    ids = tokenizer.encode(TEXT, add_special=False)
    recent = [*ids, *ids[: int(random.integers(2, len(ids)))]]
    factor, base = float(random.uniform(0.1, 3)), float(random.uniform(1, 2.5))
    allowed, last = int(random.integers(0, 5)), int(random.choice([8, 30, 1000]))
    breakers = (ctypes.c_char_p * len(texts))(*map(str.encode, texts))
    sampler = llama_cpp.llama_sampler_init_dry(
        llama_cpp.llama_model_get_vocab(theirs.model), factor, base, allowed, last, breakers,
        len(texts),
    )  # fmt: skip
    c = Candidates(np.arange(len(logits)), logits.astype(float), is_whole=True)
    ours = dry(c, recent[-last:], factor, base, allowed, find_breakers(texts, tokenizer))
    assert_same(ours, applied(sampler, logits, recent)[0])
