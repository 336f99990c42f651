"""Models that ggml's C programs trained and quantised, against what llama.cpp said of them."""

import json
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from yupana.models.loading import load_model
from yupana.models.quantize import quantize_model
from yupana.models.session import Session

DATA = Path(__file__).parents[1].parent / "shared" / "data"
REFERENCE = DATA / "llamacpp_reference.json"
pytestmark = pytest.mark.skipif(not REFERENCE.is_file(), reason="llama.cpp's figures are not here")
CASES = json.loads(REFERENCE.read_text()) if REFERENCE.is_file() else {}
# What llama.cpp says of the first model and text when the model is quantised anew.
TYPES = json.loads((Path(__file__).parent / "data" / "llamacpp_types.json").read_text())


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return yp.load(DATA / request.param), {**CASES[request.param], "file": request.param}


def test_ids_scores_and_likelihood_are_those_of_llama_cpp(case):
    model, want = case
    ids = want["tokens"]
    assert model.tokenizer.encode(want["text"])[: len(ids)] == ids
    scores = model.logits(ids).astype(np.float64)  # (T, V)
    np.testing.assert_array_equal(scores.argmax(-1), want["argmax"])
    close = 0.002 * want["logit_std"]
    np.testing.assert_allclose(scores[-1, want["cols"]], want["last_logits"], atol=close)
    assert mean_nll(scores, ids) == pytest.approx(want["mean_nll"], rel=2e-4)


def mean_nll(scores, ids):
    shifted = scores - scores.max(-1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(-1))[:-1] - shifted[np.arange(len(ids) - 1), ids[1:]]
    return nll.mean()


@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_greedy_tokens_are_those_of_llama_cpp(case, cache):
    model, want = case
    found = greedy(model.session(cache=cache, threads=1), want["tokens"][:16])
    assert found == want["greedy40_after16"]


def greedy(session, start):
    scores, found = session.eval(start), []
    for _ in range(40):
        found.append(int(scores.argmax()))
        scores = session.eval(found[-1:])
    return found


@pytest.mark.parametrize("name", TYPES)
def test_types_round_what_meets_them_as_llama_cpp_does(tmp_path, name):
    quantize_model(DATA / "sh-Q8_0.gguf", tmp_path / "m.gguf", name, allow_requantize=True)
    model, ids = yp.load(tmp_path / "m.gguf", threads=1), CASES["sh-Q8_0.gguf"]["tokens"]
    scores = model.logits(ids).astype(np.float64)
    assert mean_nll(scores, ids) == pytest.approx(TYPES[name]["mean_nll"], rel=2e-4)
    assert greedy(model.session(), ids[:16]) == TYPES[name]["greedy40_after16"]


def test_exact_products_differ_by_what_rounding_does(case):
    model, want = case
    exact = load_model(DATA / want["file"], rounds=False)
    scores = Session(exact, threads=1).eval_all(want["tokens"])
    distance = np.abs(scores - model.logits(want["tokens"])).max()
    assert 0 < distance < 0.05 * want["logit_std"]


def test_several_texts_are_written_at_a_time(case):
    model, _ = case
    alone = [[*model.generate(text, 12, seed=3)] for text in ("The", "A b")]
    first, second = (model.generate(text, 12, seed=3) for text in ("The", "A b"))
    mixed = [[next(first)], [next(second)]]
    for piece in first:
        mixed[0].append(piece)
        mixed[1] += [p for p in [next(second, None)] if p is not None]
    mixed[1] += [*second]
    assert mixed == alone


def test_adapters_come_and_go(case):
    model, want = case
    adapter = DATA / "lora-r4a8-f32.ggla.bin"
    ids = want["tokens"][:8]
    plain = model.logits(ids)
    other = yp.load(DATA / want["file"], adapters=[(adapter, 2.0)], threads=1)
    twice = other.logits(ids)
    model.attach(adapter)
    once = model.logits(ids)
    model.detach(adapter)
    np.testing.assert_array_equal(model.logits(ids), plain)
    assert 0.01 < np.abs(once - plain).max() < np.abs(twice - plain).max()
