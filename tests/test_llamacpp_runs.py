"""What is trained here, run by llama.cpp where its Python package is installed."""

import numpy as np
import pytest

import yupana as yp
from yupana.models.adapter_files import load_adapter
from yupana.models.merge import merge_adapters
from yupana.train.finetune import finetune
from yupana.train.pretrain import prepare
from yupana.train.settings import FinetuneSettings, RunSettings

TEXT = "the llama eats grass; the condor flies over the mountains, and runs to the river. " * 40
OTHER = "over the river flies the llama; the grass eats the condor, and the mountains run. " * 40
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture(scope="module")
def llama_cpp():
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@pytest.fixture(scope="module", params=["tied, grouped heads", "usual"])
def trained(request, llama_cpp, tmp_path_factory):
    """A folder with a model trained from scratch and an adapter for it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "other.txt").write_text(OTHER)
    shape = {"tied": True, "head_kv": 2} if request.param != "usual" else {"rope_freq_base": 5e3}
    how = {"ctx": 32, "batch": 4, "adam_alpha": 0.01, "warmup": 2, "threads": 1}
    sizes = {"embd": 64, "ff": 96, "head": 4, "layer": 2, "n_vocab": 300}
    model = RunSettings(model_out=folder / "m.gguf", adam_iter=40, **sizes, **shape, **how)
    prepare(TEXT, model).train()
    adapter = FinetuneSettings(
        model_base=folder / "m.gguf", train_data=folder / "other.txt",
        lora_out=folder / "a.gguf", lora_r=6, lora_alpha=9.0, rank_wq=3, adam_iter=25, **how,
    )  # fmt: skip
    finetune(adapter).train()
    return folder


def theirs(llama_cpp, path, ids, adapter=None, scale=1.0):
    """(T, V) logits and 24 greedy tokens of llama.cpp."""
    lora = {"lora_path": str(adapter), "lora_scale": scale} if adapter else {}
    model = llama_cpp.Llama(
        str(path), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False, **lora
    )
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)])
    found, scores = [], logits[-1]
    for _ in range(24):
        found.append(int(scores.argmax()))
        model.eval(found[-1:])
        scores = model.scores[model.n_tokens - 1]
    text = model.tokenize(TEXT[:60].encode(), add_bos=False)
    return logits, found, text


def ours(path, ids, adapter=None, scale=1.0):
    model = yp.load(path, adapters=[(adapter, scale)] if adapter else [], threads=1)
    session, found = model.session(), []
    scores = session.eval(ids)
    for _ in range(24):
        found.append(int(scores.argmax()))
        scores = session.eval(found[-1:])
    return model.logits(ids), found, model.tokenizer.encode(TEXT[:60])


def assert_same(one, other):
    np.testing.assert_allclose(one[0], other[0], atol=2e-3 * other[0].std())
    assert one[1:] == other[1:]


def test_models_and_adapters_do_there_what_they_do_here(llama_cpp, trained):
    model, adapter, ids = trained / "m.gguf", trained / "a.gguf", [7, 40, 261, 5, 280, 266]
    plain = theirs(llama_cpp, model, ids)
    assert_same(plain, ours(model, ids))
    for scale in (1.0, -0.5):
        there = theirs(llama_cpp, model, ids, adapter, scale)
        assert np.abs(there[0] - plain[0]).max() > 0.5
        assert_same(there, ours(model, ids, adapter, scale))
        merged = trained / f"merged{scale}.gguf"
        merge_adapters(model, [(load_adapter(adapter), scale)], merged)
        assert_same(theirs(llama_cpp, merged, ids), there)
