"""StarCoder against the formulas in NumPy, from a file, with a cache and with adapters."""

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.context import Context
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.graphlib.graph import Graph
from yupana.models.adapter_peft import save_peft
from yupana.models.formats import write_gguf
from yupana.models.llama import LlamaConfig
from yupana.models.loading import load_model
from yupana.models.lora import Adapter
from yupana.models.session import Session
from yupana.models.starcoder import StarCoder, StarCoderConfig, weight_shapes
from yupana.models.starcoder_gguf import starcoder_metadata

IDS = np.random.default_rng(0).integers(0, 19, 14).tolist()


def config_of(**changes):
    sizes = {"n_vocab": 19, "n_ctx": 16, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_ff": 40}
    return StarCoderConfig(**{**sizes, **changes})


def arrays_of(config, seed=1):
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in weight_shapes(config).items():
        values = random.standard_normal(shape).astype(np.float32)
        if len(shape) == 2:
            arrays[name] = values / np.float32(np.sqrt(shape[1]))
        else:
            arrays[name] = 0.2 * values + np.float32(name.endswith("norm.weight"))
    return arrays


def formula(config, w, ids):
    """(T, V) in float64, position by position."""
    w = {name: array.astype(np.float64) for name, array in w.items()}
    c, T = config, len(ids)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["token_embd.weight"][ids] + w["position_embd.weight"][:T]
    K, G = c.head_width, c.n_head_kv
    for i in range(c.n_layer):
        qkv = linear(f"blk.{i}.attn_qkv", norm(f"blk.{i}.attn_norm", x))
        q, k, v = np.split(qkv, [c.n_embd, c.n_embd + G * K], axis=-1)
        mixed = []
        for h in range(c.n_head):
            g = slice(h * G // c.n_head * K, (h * G // c.n_head + 1) * K)
            z = q[:, h * K : (h + 1) * K] @ k[:, g].T / np.sqrt(K)
            z = np.where(np.tri(T) > 0, z, -np.inf)
            p = np.exp(z - z.max(-1, keepdims=True))
            mixed.append(p / p.sum(-1, keepdims=True) @ v[:, g])
        x = x + linear(f"blk.{i}.attn_output", np.concatenate(mixed, -1))
        up = linear(f"blk.{i}.ffn_up", norm(f"blk.{i}.ffn_norm", x))
        gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        x = x + linear(f"blk.{i}.ffn_down", gelu)
    return norm("output_norm", x) @ w["token_embd.weight" if c.tied else "output.weight"].T


def model_of(config, arrays):
    context = Context()
    return StarCoder(config, {name: context.tensor(a) for name, a in arrays.items()}, context)


@pytest.mark.parametrize("changes", [{}, {"n_head_kv": 3}, {"tied": True, "n_layer": 1}])
def test_scores_are_those_of_the_formula(changes):
    config = config_of(**changes)
    arrays = arrays_of(config)
    model, want = model_of(config, arrays), formula(config, arrays, IDS)
    scores = model.logits(model.context.tensor([IDS, IDS[::-1]]))
    Graph(scores).compile(threads=1).run()
    np.testing.assert_allclose(scores.numpy()[0], want, rtol=1e-4, atol=1e-4)
    session = Session(model, n_batch=4, cache="f32", threads=1)
    got = [*session.eval_all(IDS[:9]), session.eval(IDS[9:10]), *session.eval_all(IDS[10:])]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_file_is_read_and_continued(tmp_path):
    config = config_of(tied=True)
    arrays = arrays_of(config)
    tokens = [*map(chr, range(97, 97 + 19))]
    words = {"model": "gpt2", "pre": "starcoder", "tokens": tokens, "merges": []}
    words |= {"eos_token_id": 18, "bos_token_id": 18}
    entries = {f"tokenizer.ggml.{key}": value for key, value in words.items()}
    half = {k: a.astype(np.float16) if a.ndim == 2 else a for k, a in arrays.items()}
    write_gguf(tmp_path / "m.gguf", starcoder_metadata(config) | entries, half)
    model = yp.load(tmp_path / "m.gguf")
    want = formula(config, half, IDS)
    np.testing.assert_allclose(model.logits(IDS), want, rtol=0.02, atol=0.02)
    text = "".join(model.generate("abc", max_tokens=99))
    assert 0 < len(text) <= 14  # where what was learned of positions ends


def test_adapters_give_the_scores_of_the_merged_weights():
    config = config_of()
    arrays = arrays_of(config)
    random = np.random.default_rng(5)
    a = random.standard_normal((2, 24)).astype(np.float32)
    b = random.standard_normal((19, 2)).astype(np.float32)
    model = model_of(config, arrays)
    pair = {"token_embd.weight": (a, b)}
    model.attach(Adapter("x", pair, alpha=1.0, architecture="starcoder"), 0.5)
    merged = arrays | {"token_embd.weight": arrays["token_embd.weight"] + 0.25 * b @ a}
    got = Session(model, cache="f32", threads=1).eval_all(IDS)
    np.testing.assert_allclose(got, formula(config, merged, IDS), rtol=1e-3, atol=1e-3)


def test_an_adapter_of_a_llama_in_peft_is_told_apart(tmp_path):
    config = config_of(tied=True)
    write_gguf(tmp_path / "m.gguf", starcoder_metadata(config), arrays_of(config))
    pair = np.ones((2, 24), np.float32), np.ones((24, 2), np.float32)
    sizes = LlamaConfig(n_vocab=19, n_ctx=16, n_embd=24, n_layer=2, n_head=3)
    save_peft(tmp_path / "a", Adapter("a", {"blk.0.attn_q.weight": pair}), sizes)
    with pytest.raises(SettingError, match=r"no such weight: got 'blk\.0\.attn_q\.weight'"):
        yp.load(tmp_path / "m.gguf", adapters=[tmp_path / "a"])


def test_positions_end_where_they_were_learned():
    model = model_of(config_of(), arrays_of(config_of()))
    with pytest.raises(SettingError, match="n_ctx: got 17, want at most 16"):
        Session(model, n_ctx=17)
    session = Session(model, threads=1)
    session.eval(IDS)
    with pytest.raises(SettingError, match="learned positions"):
        session.shift(2, 4)
    assert session.length() == len(IDS)


@pytest.mark.parametrize(
    ("entries", "arrays", "words"),
    [
        ({"general.architecture": "bert"}, {}, "architecture: got 'bert'"),
        ({"starcoder.attention.head_count": 5}, {}, "n_embd: got 24, want a multiple of n_head"),
        ({"starcoder.block_count": 3}, {}, r"no tensor 'blk\.2\.attn_norm\.weight'"),
        ({"starcoder.block_count": 1}, {}, r"block_count' at byte \d+: got 1, want at least 2"),
        ({"starcoder.block_count": 0}, {}, r"block_count' at byte \d+: got 0, want at least 1"),
        ({"tokenizer.ggml.tokens": ["a", "b"]}, {}, r"tokens' at byte \d+: got 2 tokens, want 19"),
        ({}, {"output.weight": np.ones((19, 23), np.float32)}, "output.weight' at .*19, 23"),
        ({}, {"position_embd.weight": None}, "no tensor 'position_embd.weight'"),
        ({}, {"output.weight": np.ones((19, 24), np.int32)}, "want real numbers"),
    ],
)
def test_each_fault_of_a_file_has_its_message(tmp_path, entries, arrays, words):
    config = config_of()
    tensors = {k: a for k, a in (arrays_of(config) | arrays).items() if a is not None}
    write_gguf(tmp_path / "m.gguf", starcoder_metadata(config) | entries, tensors)
    with pytest.raises(FileFormatError, match=words):
        load_model(tmp_path / "m.gguf")


def test_the_loss_and_its_gradient_are_those_of_the_formula():
    config = config_of()
    arrays = {name: array.astype(np.float64) for name, array in arrays_of(config).items()}
    context = Context()
    weights = {n: context.param(a.shape, "f64", name=n).set(a) for n, a in arrays.items()}
    model = StarCoder(config, weights, context)
    tokens, targets = context.tensor([IDS[:-1]]), context.tensor([IDS[1:]])
    loss = model.loss(tokens, targets)
    graph = Graph(loss)
    grads = graph.backward(loss)
    graph.compile().run()

    def wanted(name=None, at=0, by=0.0):
        moved = {n: a.copy() for n, a in arrays.items()}
        if name:
            moved[name].flat[at] += by
        scores = formula(config, moved, IDS[:-1])
        top = scores.max(-1, keepdims=True)
        logs = scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))
        return -logs[np.arange(len(IDS) - 1), IDS[1:]].mean()

    assert loss.item() == pytest.approx(wanted(), rel=1e-9)
    assert {leaf.name for leaf in grads} == set(arrays)
    for leaf, grad in grads.items():
        at = leaf.size // 2 if leaf.name != "token_embd.weight" else IDS[0] * config.n_embd
        slope = (wanted(leaf.name, at, 1e-5) - wanted(leaf.name, at, -1e-5)) / 2e-5
        assert grad.numpy().flat[at] == pytest.approx(slope, rel=1e-4, abs=1e-9), leaf.name


def test_packed_samples_do_not_see_each_other():
    config = config_of()
    context = Context()
    model = StarCoder(config, {n: context.tensor(a) for n, a in arrays_of(config).items()}, context)
    ids, other = IDS[:5], IDS[5:9]

    def loss(rows, **settings):
        tokens = context.tensor([rows[:-1]])
        return model.loss(tokens, context.tensor([rows[1:]]), **settings).item() * (len(rows) - 1)

    places = {"positions": [[*range(5), *range(4)]], "segments": [[1] * 5 + [2] * 4]}
    targets = context.tensor([[*ids[1:], -1, *other[1:], -1]])
    packed = model.loss(
        context.tensor([ids + other]), targets, **{n: context.tensor(v) for n, v in places.items()}
    )
    assert packed.item() * 7 == pytest.approx(loss(ids) + loss(other), rel=1e-5)
