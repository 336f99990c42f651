"""Sessions: what a cache gives is what the whole graph gives, whatever was read in which pieces."""

import numpy as np
import pytest

from yupana.graphlib.context import Context
from yupana.graphlib.errors import SettingError
from yupana.graphlib.graph import Graph
from yupana.graphlib.tensor import next_sequence
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.lora import Adapter
from yupana.models.session import Session

N_CTX = 40
SIZES = {"n_vocab": 23, "n_ctx": N_CTX, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_ff": 48}
KINDS = {
    "heads": {},
    "grouped": {"n_head_kv": 2},
    "one head of keys": {"n_head_kv": 1, "n_head": 8},
    "wide heads": {"head_width": 20, "value_width": 12, "n_head_kv": 2},
    "tied, yarn": {"tied": True, "yarn": True, "rope_scale": 0.25, "n_ctx_orig": 10},
}


def make_model(seed=1, **changes):
    model = Llama(LlamaConfig(**{**SIZES, **changes})).init(seed)
    for weight in model.weights.values():
        if weight.ndim == 2:  # scores far enough apart to tell positions
            weight.set(weight.numpy() * 8)
    return model


def ids_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, SIZES["n_vocab"], n).tolist()


def exact(model, ids):
    """Scores of every position by a graph of just that length, without a cache."""
    scores = model.logits(Context().tensor([ids]))
    Graph(scores).compile(threads=1).run()
    return scores.numpy()[0]


def close(got, want, tolerance=1e-4):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_any_pieces_give_the_scores_of_the_whole(kind):
    model, ids = make_model(**KINDS[kind]), ids_of(30)
    want = exact(model, ids)
    session = Session(model, n_batch=8, cache="f32", threads=1)
    close(session.eval_all(ids[:13]), want[:13])  # 8, and 5 in a program of 6
    close(session.eval(ids[13:16]), want[15])
    for at in range(16, 20):
        close(session.eval(ids[at : at + 1]), want[at])
    close(session.eval(ids[20:]), want[29])
    assert session.length() == 30


@pytest.mark.parametrize(
    ("cache", "bound"), [("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.2), ("q4_0", 1.0)]
)
def test_smaller_caches_cost_little(cache, bound):
    model, ids = make_model(n_embd=64, n_head=2), ids_of(30)
    want = exact(model, ids)
    session = Session(model, cache=cache, threads=1)
    got = np.concatenate([session.eval_all(ids[:20]), session.eval_all(ids[20:])])
    assert 0 < np.abs(got - want).max() < bound * want.std()


def test_sequences_do_not_see_each_other():
    model = make_model(n_head_kv=2)
    texts = [ids_of(n, seed=n) for n in (5, 12, 1)]
    session = Session(model, n_seq=3, n_batch=2, cache="f32", threads=1)
    for seq in (2, 0, 1):
        session.eval(texts[seq][:-1] or texts[seq], seq)
    session.truncate(0, 2)
    got = session.eval_batch([(seq, texts[seq][-1]) for seq in (1, 2, 0)])
    for row, seq in zip(got, (1, 2, 0), strict=True):
        close(row, exact(model, texts[seq])[-1])
    assert [session.length(seq) for seq in range(3)] == [5, 12, 1]


def test_sequences_are_forgotten_copied_saved_and_restored():
    model, ids = make_model(), ids_of(12)
    session = Session(model, n_seq=2, threads=1)
    after = session.eval(ids)
    session.copy(0, 1)
    saved = session.state(1)
    session.truncate(4)
    session.eval(ids[:3])
    session.truncate(4)
    np.testing.assert_array_equal(session.eval(ids[4:]).argmax(), after.argmax())
    want = session.eval([7], seq=1)
    other = Session(model, threads=1)
    other.restore(saved)
    np.testing.assert_array_equal(other.eval([7]), want)


@pytest.mark.parametrize("cache", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("changes", [{}, {"yarn": True, "rope_scale": 0.5, "rope_magnitude": 1.3}])
def test_a_shift_leaves_what_would_be_there_without_the_dropped(cache, changes):
    # In one layer, keys and values depend on their own token and position alone.
    model, ids = make_model(n_layer=1, n_embd=64, n_head=2, **changes), ids_of(30)
    session = Session(model, n_batch=8, cache=cache, threads=1)
    session.eval(ids)
    session.shift(3, 7)
    assert session.length() == 23
    want = exact(model, [*ids[:3], *ids[10:], 5])[-1]
    close(session.eval([5]), want, {"f32": 1e-4, "f16": 0.03, "q8_0": 0.4}[cache])


def test_nothing_is_recorded_for_a_token_and_programs_are_few():
    session = Session(make_model(), threads=1)
    session.eval(ids_of(9))
    session.eval([1])
    before = next_sequence()
    for token in ids_of(8):
        session.eval([token])
    session.truncate(0)
    session.eval(ids_of(12))  # in the program of 9
    assert next_sequence() == before + 1


def test_results_are_the_same_bits_for_any_number_of_threads():
    model, ids = make_model(n_embd=64), ids_of(33)
    first, second = (Session(model, threads=n).eval_all(ids) for n in (1, 2))
    np.testing.assert_array_equal(first, second)


def make_adapter(name, model, seed, alpha=None, rank=3):
    random = np.random.default_rng(seed)
    pairs = {}
    for weight, tensor in model.weights.items():
        outputs, inputs = tensor.shape if tensor.ndim == 2 else (1, *tensor.shape)
        a = random.standard_normal((rank, inputs)).astype(np.float32) / 4
        pairs[weight] = a, random.standard_normal((outputs, rank)).astype(np.float32) / 4
    return Adapter(name, pairs, alpha)


def test_adapters_give_the_scores_of_the_merged_weights():
    model, ids = make_model(tied=True), ids_of(12)
    first, second = make_adapter("a", model, 2, alpha=6.0), make_adapter("b", model, 3)
    merged = make_model(tied=True)
    for name, weight in merged.weights.items():
        total = weight.numpy().astype(np.float64)
        for adapter, scale in ((first, 0.5 * 6.0 / 3), (second, -0.25)):
            a, b = adapter.pairs[name]
            total += scale * (b @ a).reshape(weight.shape)
        weight.set(total)
    session = Session(model, cache="f32", threads=1)
    plain = session.eval_all(ids)
    model.attach(first, 0.5)
    model.attach(second, 1.0)
    session.truncate(0)
    session.eval_all(ids)
    programs = next_sequence()
    model.set_scale("b", -0.25)  # is data
    session.truncate(0)
    got = session.eval_all(ids)
    assert next_sequence() == programs + 1
    close(got, exact(merged, ids), 2e-3)
    model.detach("a")
    model.detach("b")
    session.truncate(0)
    np.testing.assert_array_equal(session.eval_all(ids), plain)


def test_wrong_requests_are_refused():
    model = make_model()
    session = Session(model, n_seq=2, threads=1)
    for wrong in ([], [23], [-1], [[1]], [1.5]):
        with pytest.raises(SettingError, match="want at least one, each from 0 to 22"):
            session.eval(wrong)
    with pytest.raises(SettingError, match="got 41 tokens behind 0, want at most 40"):
        session.eval([1] * 41)
    assert session.length() == 0
    session.eval([1] * 40)
    with pytest.raises(SettingError, match="`shift` or `truncate`"):
        session.eval_batch([(1, 0), (0, 0)])
    assert session.length(1) == 0
    with pytest.raises(SettingError, match="got 2, want 0 to 1"):
        session.eval([1], seq=2)
    with pytest.raises(SettingError, match=r"\[1, 1\], want each once"):
        session.eval_batch([(1, 0), (1, 0)])
    with pytest.raises(SettingError, match="truncate: got 41"):
        session.truncate(41)
    with pytest.raises(SettingError, match="keep 30 and discard 11"):
        session.shift(30, 11)
    with pytest.raises(SettingError, match="another model or cache type"):
        Session(model, cache="f32", threads=1).restore(session.state())
    with pytest.raises(SettingError, match="got 40 tokens, want at most 8"):
        Session(model, n_ctx=8, threads=1).restore(session.state())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_ctx": 0}, "n_ctx: got 0"),
        ({"n_ctx": 2**30, "n_seq": 2}, f"n_ctx: got {2**30}, want 1 to {2**30 - 1}"),
        ({"n_seq": 0}, "n_seq: got 0"),
        ({"n_batch": 0}, "n_batch: got 0"),
        ({"cache": "q6_k"}, "cache: got 'q6_k', want one of f16, f32, bf16, q8_0, q5_1"),
        ({"cache": "q8_0"}, "q8_0 for heads of .*8.*multiples of 32"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(SettingError, match=words):
        Session(make_model(), **settings)


def test_a_cache_beyond_all_memory_is_refused():
    sizes = LlamaConfig(n_vocab=23, n_ctx=2**31 - 1, n_embd=8192, n_layer=64, n_head=64)
    with pytest.raises(SettingError, match=r"no memory for the cache: .* 4\.19e\+06 GiB"):
        Session(Llama(sizes, Context(no_alloc=True)))


def test_adapters_that_do_not_fit_are_refused():
    model = make_model()
    adapter = make_adapter("a", model, 1)
    model.attach(adapter)
    with pytest.raises(SettingError, match="attached already"):
        model.attach(adapter)
    with pytest.raises(SettingError, match="no such adapter: got 'b'"):
        model.detach("b")
    with pytest.raises(SettingError, match="belongs to another model"):
        make_model(n_ff=32).attach(adapter)
    with pytest.raises(SettingError, match="no such weight"):
        make_model(tied=True).attach(adapter)
    with pytest.raises(SettingError, match="got one for 'starcoder'"):
        make_model().attach(Adapter("s", {}, architecture="starcoder"))
