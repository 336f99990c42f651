"""Texts that go on: what is evaluated when, and what is dropped when the context is full."""

import numpy as np
import pytest

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.prompt_cache import (
    PromptCache,
    fingerprint,
    load_prompt_cache,
    save_prompt_cache,
)
from yupana.models.sampling import RandomStream, Sampler, Sampling
from yupana.models.session import Session
from yupana.models.timings import Timings
from yupana.models.writer import Writer

GREEDY = Sampling(temp=0)
PROMPT = [3, 1, 4, 1, 5]


def make_model(seed: int = 1, n_layer: int = 2) -> Llama:
    config = LlamaConfig(n_vocab=19, n_ctx=16, n_embd=64, n_layer=n_layer, n_head=2)
    return Llama(config).init(seed=seed)


MODEL = make_model()


def make_writer(n_ctx: int = 16, sampling: Sampling = GREEDY, **settings) -> Writer:
    session = Session(MODEL, n_ctx=n_ctx, cache="f32", threads=1)
    return Writer(session, Sampler(sampling), RandomStream(3), **settings)


class Recorder:
    """A session that remembers what was asked of it, and computes nothing."""

    def __init__(self, n_ctx: int, n_batch: int = 512) -> None:
        self.n_ctx, self.n_batch, self.model = n_ctx, n_batch, MODEL
        self.calls: list[tuple] = []

    def eval(self, ids):
        self.calls.append(("eval", len(ids)))
        return np.arange(19.0)

    def shift(self, keep, discard):
        self.calls.append(("shift", keep, discard))


def test_a_token_is_evaluated_when_the_next_is_wanted():
    writer = make_writer()
    writer.read(PROMPT)
    assert writer.tokens == []
    first = writer.draw()
    assert (writer.tokens, writer.pending) == (PROMPT, [first])
    second = writer.draw()
    assert (writer.tokens, writer.pending) == ([*PROMPT, first], [second])
    expected = Session(MODEL, cache="f32", threads=1).eval([*PROMPT, first])
    assert second == int(np.argmax(expected))
    assert (writer.timings.prompt.count, writer.timings.eval.count) == (5, 1)
    assert writer.timings.sample.count == 2


def test_what_is_read_counts_for_the_penalties():
    sampling = Sampling(temp=0, presence_penalty=1000)
    writer = make_writer(sampling=sampling)
    writer.read(PROMPT)
    drawn = [writer.draw() for _ in range(6)]
    assert len({*drawn, *PROMPT}) == 6 + len({*PROMPT})


def test_prompts_are_read_in_batches():
    session = Recorder(n_ctx=100)
    writer = Writer(session, Sampler(GREEDY), RandomStream(0), n_batch=4)
    writer.read(range(10))
    assert writer.draw() == 18
    assert session.calls == [("eval", 4), ("eval", 4), ("eval", 2)]


def test_a_full_context_drops_half_of_what_is_not_kept():
    # llama.cpp: n_left = n_past - n_keep, n_discard = n_left / 2, when n_past + 1 >= n_ctx.
    session = Recorder(n_ctx=12)
    writer = Writer(session, Sampler(GREEDY), RandomStream(0), keep=3)
    writer.read([0, 1, 2, 3, 4, 5])
    for _ in range(7):
        writer.draw()
    assert session.calls == [("eval", 6)] + [("eval", 1)] * 5 + [("shift", 3, 4), ("eval", 1)]
    assert writer.tokens == [0, 1, 2, 18, 18, 18, 18, 18]
    assert writer.has_shifted


def test_the_text_goes_on_as_llama_cpp_computes_it():
    """Keys move to their new places; values were computed before, with what is dropped."""
    writer = make_writer(keep=2)
    writer.read(PROMPT)
    drawn = [writer.draw() for _ in range(24)]
    by_hand = Session(MODEL, cache="f32", threads=1)
    logits, expected = by_hand.eval(PROMPT), []
    while len(expected) < 24:
        expected.append(int(np.argmax(logits)))
        if by_hand.length() + 1 >= 16:
            by_hand.shift(2, (by_hand.length() - 2) // 2)
        logits = by_hand.eval([expected[-1]])
    assert drawn == expected


def test_a_text_that_must_not_shift_ends():
    writer = make_writer(shifts=False)
    writer.read(PROMPT)
    drawn = []
    while (token := writer.draw()) is not None:
        drawn.append(token)
    assert len(drawn) == 16 - 5 + 1  # the last one drawn needs no place
    assert not writer.has_shifted
    assert writer.draw() is None


def test_what_is_kept_may_leave_little_room():
    session = Recorder(n_ctx=8)
    writer = Writer(session, Sampler(GREEDY), RandomStream(0), keep=6)
    writer.read(range(6))
    for _ in range(5):
        assert writer.draw() == 18
    assert writer.tokens[:6] == list(range(6))
    full = Writer(Recorder(n_ctx=4), Sampler(GREEDY), RandomStream(0), keep=9)
    full.read(range(9))
    assert full.draw() is None


def test_nothing_to_go_on_from_is_refused():
    with pytest.raises(SettingError, match="the text is empty"):
        make_writer().draw()
    with pytest.raises(SettingError, match="keep: got -1"):
        make_writer(keep=-1)
    with pytest.raises(SettingError, match="n_batch: got 0"):
        make_writer(n_batch=0)


def test_another_text_is_read_from_where_it_differs():
    writer, other = make_writer(), make_writer()
    writer.read(PROMPT)
    for _ in range(3):
        writer.draw()
    writer.reread([*PROMPT[:4], 9, 9])
    assert (writer.tokens, writer.pending) == (PROMPT[:4], [9, 9])
    other.read([*PROMPT[:4], 9, 9])
    assert [writer.draw() for _ in range(4)] == [other.draw() for _ in range(4)]
    writer.reread(writer.tokens[:5])
    assert len(writer.pending) == 1  # so that there are scores to draw from


@pytest.mark.parametrize("cache", ["f16", "f32", "q8_0"])
def test_a_cache_saves_reading_again(tmp_path, cache):
    owner, path = fingerprint(MODEL), tmp_path / "cache"

    def start(prompt):
        session = Session(MODEL, cache=cache, threads=1)
        writer = Writer(session, Sampler(GREEDY), RandomStream(0))
        writer.read(prompt)
        return writer

    first = start(PROMPT)
    first.evaluate()
    save_prompt_cache(path, PromptCache(first.tokens, first.session.state()), owner)
    found = load_prompt_cache(path, owner)
    assert found.tokens == PROMPT
    expected = [first.draw() for _ in range(4)]
    again = start(PROMPT)
    assert again.resume(found.tokens, found.state) == 4  # the last one is evaluated always
    assert [again.draw() for _ in range(4)] == expected
    assert again.timings.prompt.count == 0
    other, alone = start([*PROMPT[:3], 9, 9]), start([*PROMPT[:3], 9, 9])
    assert other.resume(found.tokens, found.state) == 3
    assert [other.draw() for _ in range(3)] == [alone.draw() for _ in range(3)]


def test_a_cache_is_refused_by_another_model(tmp_path):
    path = tmp_path / "cache"
    writer = make_writer()
    writer.read(PROMPT)
    writer.evaluate()
    save_prompt_cache(path, PromptCache(writer.tokens, writer.session.state()), fingerprint(MODEL))
    with pytest.raises(SettingError, match="belongs to another model"):
        load_prompt_cache(path, fingerprint(make_model(seed=2)))
    found = load_prompt_cache(path, fingerprint(MODEL))
    half = Session(MODEL, cache="f16", threads=1)
    with pytest.raises(SettingError, match="another model or cache type"):
        half.restore(found.state)


def test_fingerprints_tell_models_and_adapters_apart(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.write_bytes(b"one")
    prints = [fingerprint(MODEL), fingerprint(make_model()), fingerprint(MODEL, [(adapter, 1.0)])]
    prints.append(fingerprint(MODEL, [(adapter, 0.5)]))
    adapter.write_bytes(b"two")
    prints.append(fingerprint(MODEL, [(adapter, 1.0)]))
    (tmp_path / "more").write_bytes(b"three")  # a folder of PEFT has several files
    prints.append(fingerprint(MODEL, [(tmp_path, 1.0)]))
    other = make_model()
    other.weights["output_norm.weight"].set(1.5)
    prints.append(fingerprint(other))
    assert prints[0] == prints[1]
    assert len({*prints}) == 6


def test_files_that_are_no_cache_are_refused(tmp_path):
    path = tmp_path / "cache"
    write_gguf(path, {"general.name": "a model"}, {})
    with pytest.raises(FileFormatError, match="no prompt cache"):
        load_prompt_cache(path, "x")
    state = {"keys": np.zeros((2, 3, 4), np.float16), "values": np.zeros((2, 3, 4), np.float16)}
    save_prompt_cache(path, PromptCache([1, 2], state), "x")
    with pytest.raises(FileFormatError, match="damaged: got 2 tokens and arrays"):
        load_prompt_cache(path, "x")
    with GgufFile(path) as file:
        metadata = dict(file.metadata)
        tensors = {name: info.data.copy() for name, info in file.tensors.items()}
    for wrong in ("O", "nonsense", ">c16"):
        write_gguf(path, metadata | {"yupana.prompt_cache.keys.dtype": wrong}, tensors)
        with pytest.raises(FileFormatError, match="damaged"):
            load_prompt_cache(path, "x")
    write_gguf(path, metadata | {"yupana.prompt_cache.tokens": ["one", "two"]}, tensors)
    with pytest.raises(FileFormatError, match="got an array with 'one', want whole numbers"):
        load_prompt_cache(path, "x")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FileFormatError):
        load_prompt_cache(path, "x")


def test_timings_are_those_of_llama_cpp():
    timings = Timings(start=10.0)
    timings.load.seconds, timings.sample.seconds, timings.sample.count = 0.5, 0.001, 4
    timings.prompt.seconds, timings.prompt.count = 0.1, 20
    timings.eval.seconds, timings.eval.count = 0.2, 4
    assert timings.table(now=11.0).splitlines() == [
        "       load time =     500.00 ms",
        "     sample time =       1.00 ms /     4 runs   "
        "(    0.25 ms per token,  4000.00 tokens per second)",
        "prompt eval time =     100.00 ms /    20 tokens "
        "(    5.00 ms per token,   200.00 tokens per second)",
        "       eval time =     200.00 ms /     4 runs   "
        "(   50.00 ms per token,    20.00 tokens per second)",
        "      total time =    1000.00 ms /    24 tokens",
    ]
