"""Perplexity: by its definition, and the number that llama.cpp prints."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yupana.cli import main
from yupana.graphlib.errors import DataError, SettingError
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.perplexity import perplexity
from yupana.models.session import Session
from yupana.models.vocabulary import Vocabulary

DATA = Path(__file__).parents[2] / "shared" / "data"
CONFIG = LlamaConfig(n_vocab=13, n_ctx=16, n_embd=16, n_layer=1, n_head=2)
IDS = (np.arange(40) * 7 % 13).tolist()


def make_session(n_batch: int = 512) -> Session:
    return Session(Llama(CONFIG).init(seed=4), n_ctx=16, n_batch=n_batch, cache="f32", threads=1)


@pytest.mark.parametrize(("bos", "n_batch"), [(None, 512), (2, 512), (2, 3)])
def test_it_is_exp_of_the_mean_loss_of_second_halves(bos, n_batch):
    n_ctx = 8
    estimates = [*perplexity(make_session(n_batch), IDS, n_ctx, bos)]
    session, losses = make_session(), []
    for chunk in range(5):
        tokens = IDS[chunk * n_ctx : (chunk + 1) * n_ctx]
        inputs = tokens if bos is None else [bos, *tokens[1:]]
        session.truncate(0)
        logits = session.eval_all(inputs).astype(np.float64)
        for k in range(n_ctx // 2, n_ctx - 1):  # scores at k foresee token k + 1
            losses.append(math.log(np.exp(logits[k]).sum()) - logits[k, tokens[k + 1]])
        mean = sum(losses) / len(losses)
        error = math.exp(mean) * np.std(losses) / math.sqrt(len(losses) - 1)
        e = estimates[chunk]
        assert (e.chunk, e.tokens) == (chunk + 1, len(losses))
        assert (e.mean, e.perplexity) == pytest.approx((mean, math.exp(mean)), rel=1e-6)
        assert e.error == pytest.approx(error, rel=1e-5)


def test_chunks_are_as_many_as_wanted_and_whole():
    session = make_session()
    assert [e.chunk for e in perplexity(session, IDS, 9)] == [1, 2, 3, 4]
    assert [e.chunk for e in perplexity(session, IDS, 9, chunks=2)] == [1, 2]
    assert [e.chunk for e in perplexity(session, IDS, 9, chunks=99)] == [1, 2, 3, 4]
    assert math.isnan(next(iter(perplexity(session, IDS, 4, chunks=1))).error)


def test_bad_requests_are_refused_at_once():
    session = make_session()
    with pytest.raises(DataError, match="got 9 tokens, want at least 10, twice the context of 5"):
        perplexity(session, IDS[:9], 5)
    for n_ctx in (3, 17):
        with pytest.raises(SettingError, match=f"n_ctx: got {n_ctx}, want 4 to 16"):
            perplexity(session, IDS, n_ctx)
    for chunks in (0, -2):
        with pytest.raises(SettingError, match=f"chunks: got {chunks}"):
            perplexity(session, IDS, 5, chunks=chunks)


@pytest.mark.skipif(not DATA.exists(), reason="the models of ../shared/data are not there")
def test_the_program_ends_at_the_number_of_llama_cpp(capsys, tmp_path):
    text = tmp_path / "tail.txt"
    text.write_bytes((DATA / "tinyshakespeare.txt").read_bytes()[-60_000:])
    flags = ["-c", "128", "-b", "128", "--chunks", "32"]
    assert main(["perplexity", str(DATA / "sh-Q8_0.gguf"), "-f", str(text), *flags]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("[1]93.")
    assert out.count("],") + out.count("[") == 32
    final = out.splitlines()[-1].split()
    assert final[:4] == ["Final", "estimate:", "PPL", "="]
    assert float(final[4]) == pytest.approx(100.7570, rel=5e-4)
    assert float(final[6]) == pytest.approx(6.43, abs=0.01)
    assert "prompt eval time" in err
    assert "4096 tokens" in err


def test_the_time_it_will_take_is_told_without_that_of_the_first_chunk(
    capsys, tmp_path, monkeypatch
):
    path, text = tmp_path / "m.gguf", tmp_path / "text.txt"
    config = LlamaConfig(n_vocab=257, n_ctx=16, n_embd=16, n_layer=1, n_head=2)
    save_llama(path, Llama(config).init(seed=1), Vocabulary.from_bytes())
    text.write_text("a llama " * 20, encoding="utf-8")
    ticks = iter([0.0, 100.0, 103.0, *range(104, 120)])  # the first one waits for kernels
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr("yupana.commands.perplexity.time", clock)
    assert main(["perplexity", str(path), "-f", str(text), "-c", "16"]) == 0
    assert "3.00 seconds per chunk, 0.50 minutes in all" in capsys.readouterr().err
