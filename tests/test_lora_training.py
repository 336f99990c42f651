"""LoRA as it is trained, against the same model in torch with W + s · B · A written out."""

import math

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.dtypes import dtype_of
from yupana.graphlib.errors import SettingError
from yupana.models.llama import Llama, LlamaConfig, weight_shapes
from yupana.train.lora import TrainedAdapter
from yupana.train.lora_settings import LoraSettings

torch = pytest.importorskip("torch", reason="torch is not installed")
from tests.test_llama_torch import Reference  # noqa: E402 - it imports torch

TYPES = ["f32", "f16", "bf16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
K_TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
SETTINGS = {
    "finetune's": LoraSettings(
        lora_r=4, lora_alpha=8, rank_att_norm=1, rank_ffn_norm=1, rank_out_norm=1
    ),
    "queries and values": LoraSettings(lora_r=3, target_modules=("q_proj", "v_proj")),
    "linear, one block": LoraSettings(target_modules=("all-linear",), lora_layers="1"),
    "rsLoRA": LoraSettings(lora_r=4, lora_alpha=2, use_rslora=True),
    "DoRA": LoraSettings(lora_r=4, use_dora=True, target_modules=("all-linear", "output")),
    "dropout": LoraSettings(lora_dropout=0.3, target_modules=("all-linear", "lm_head")),
}


def frozen_model(dtype, wide=False):
    """A model whose matrices are frozen and of a type, norms f32; of order one."""
    sizes = {"n_embd": 256, "n_head": 4, "n_ff": 256} if wide else {"n_embd": 64, "n_head": 4}
    config = LlamaConfig(n_vocab=40, n_ctx=12, n_layer=2, n_head_kv=2, n_mult=32, **sizes)
    random, context, weights = np.random.default_rng(1), yp.Context(), {}
    for name, shape in weight_shapes(config).items():
        kind = dtype_of(dtype if len(shape) == 2 else "f32")
        scale = 1.5 / math.sqrt(shape[-1]) if len(shape) == 2 else 0.2
        values = random.standard_normal(shape).astype(np.float32) * np.float32(scale)
        leaf = context.leaf(shape, kind, name)
        leaf.set(values + (len(shape) == 1))
        weights[name] = leaf
    return Llama(config, context, weights)


def started(adapter):
    """With B, A and magnitudes moved away from where training starts."""
    random = np.random.default_rng(2)
    for p in adapter.parameters.values():
        p.set(p.numpy() + random.standard_normal(p.shape).astype(np.float32) * np.float32(0.2))
    return adapter


class AdaptedReference(Reference):
    """Materialised weights; parameters are those of the adapter."""

    def __init__(self, model, adapter):
        self.c = model.config
        self.base = {
            name: torch.tensor(w.numpy(), dtype=torch.float64) for name, w in model.weights.items()
        }
        self.p = {
            name: torch.tensor(p.numpy(), dtype=torch.float64, requires_grad=True)
            for name, p in adapter.parameters.items()
        }
        self.adapter = adapter
        self.w = {name: self.sum(name) for name in self.base}

    def sum(self, name):
        w, pair = self.base[name], self.adapter.pairs.get(name)
        if pair is None or self.adapter.settings.lora_dropout:
            return w
        delta = pair.factor * self.p[f"{name}.lora_b"] @ self.p[f"{name}.lora_a"]
        w = w + delta.reshape(w.shape)
        if pair.magnitude is None:
            return w
        lengths = w.detach().pow(2).sum(1).sqrt()
        return w * (self.p[f"{name}.magnitude"] / lengths)[:, None]

    def linear(self, name, x):
        y = super().linear(name, x)
        pair, settings = self.adapter.pairs.get(f"{name}.weight"), self.adapter.settings
        if pair is None or not settings.lora_dropout:
            return y
        ones = yp.tensor(np.ones(x.shape, np.float32))
        kept = yp.ops.dropout(ones, self.adapter.seed, settings.lora_dropout, pair.salt)
        a, b = (self.p[f"{name}.weight.lora_{part}"] for part in "ab")
        return y + pair.factor * (x * torch.tensor(kept.numpy()).double()) @ a.T @ b.T


def check(model, settings, **options):
    adapter = started(TrainedAdapter(model.weights, settings, seed=3))
    adapter.set_step(5)
    model.attach_part("trained", adapter)
    ids = np.random.default_rng(4).integers(0, 40, (3, 13), dtype=np.int32)
    tokens, targets = (model.context.tensor(part) for part in (ids[:, :-1], ids[:, 1:]))
    loss = model.loss(tokens, targets, flash=options.pop("flash", False))
    threads = options.pop("threads", 1)
    grads = yp.gradients(loss, **options)
    assert set(grads) == set(adapter.parameters.values())
    program = yp.Graph([loss, *grads.values()]).compile(threads)
    program.run()
    reference = AdaptedReference(model, adapter)
    logits = reference.logits(torch.tensor(ids[:, :-1]).long())
    wanted = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(ids[:, 1:]).long().flatten()
    )
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    for name, pair in adapter.pairs.items():
        # Both parts together: B of a norm is one number, small as a difference of large ones.
        parts = [p for p in (pair.a, pair.b, pair.magnitude) if p is not None]
        want = np.concatenate([reference.p[p.name].grad.numpy().ravel() for p in parts])
        got = np.concatenate([grads[p].numpy().ravel() for p in parts])
        error = np.linalg.norm(got - want) / np.linalg.norm(want)
        assert error < 1e-4, f"gradient of the pair of {name} is off by {error:.1e}"
    model.detach("trained")


@pytest.mark.parametrize("dtype", [*TYPES, *K_TYPES])
def test_every_type_of_base(dtype):
    check(frozen_model(dtype, wide=dtype in K_TYPES), SETTINGS["finetune's"])


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_kind_of_adapter(name, flash):
    check(frozen_model("Q8_0"), SETTINGS[name], flash=flash)


@pytest.mark.parametrize("checkpoints", [None, "sqrt", "all", yp.MemoryBudget(1 << 40, 0.3)])
@pytest.mark.parametrize("threads", [1, 2])
def test_with_checkpoints_and_threads(checkpoints, threads):
    model = frozen_model("Q4_0")
    for name in ("finetune's", "dropout", "DoRA"):
        flash = (threads == 2) == (checkpoints is None)
        check(model, SETTINGS[name], checkpoints=checkpoints, threads=threads, flash=flash)


def test_training_starts_from_the_model_as_it_is():
    model = frozen_model("Q8_0")
    tokens = model.context.tensor(np.arange(12)[None])
    before = model.logits(tokens).numpy()
    for settings in SETTINGS.values():
        adapter = TrainedAdapter(model.weights, settings)
        model.attach_part("trained", adapter)
        adapter.set_step(0)
        np.testing.assert_allclose(model.logits(tokens).numpy(), before, rtol=2e-5, atol=2e-5)
        model.detach("trained")


@pytest.mark.parametrize("name", ["finetune's", "rsLoRA", "queries and values", "DoRA"])
def test_what_files_get_does_the_same(name):
    model = frozen_model("Q8_0")
    tokens = model.context.tensor(np.arange(12)[None])
    adapter = started(TrainedAdapter(model.weights, SETTINGS[name]))
    model.attach_part("trained", adapter)
    want = model.logits(tokens).numpy()
    model.detach("trained")
    model.attach(adapter.adapter("from a file"))
    np.testing.assert_allclose(model.logits(tokens).numpy(), want, rtol=1e-4, atol=1e-4)


def test_validation_drops_nothing():
    model = frozen_model("f32")
    adapter = started(TrainedAdapter(model.weights, SETTINGS["dropout"]))
    model.attach_part("trained", adapter)
    tokens = model.context.tensor(np.arange(12)[None])
    with adapter.without_dropout():
        whole = model.logits(tokens)
    dropped = model.logits(tokens)
    values = []
    for step in (0, 1):
        adapter.set_step(step)
        values.append((whole.numpy(), dropped.numpy()))
    np.testing.assert_array_equal(values[0][0], values[1][0])
    assert np.abs(values[0][1] - values[1][1]).max() > 0.01


def test_a_frozen_matrix_gets_no_gradient_and_is_not_expanded():
    model = frozen_model("Q8_0", wide=True)
    adapter = TrainedAdapter(model.weights, SETTINGS["queries and values"])
    model.attach_part("trained", adapter)
    tokens = model.context.tensor(np.arange(24).reshape(2, 12))
    loss = model.loss(tokens, tokens)
    graph = yp.Graph([loss, *yp.gradients(loss).values()])
    whole = {w.shape for w in model.weights.values() if w.ndim == 2}
    made = [node for node in graph.nodes if node.shape in whole and node.dtype.name == "f32"]
    assert not made, f"as large as a weight: {made}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_r": -1}, "lora_r is out of range: got -1"),
        ({"lora_dropout": 1.0}, "lora_dropout is out of range: got 1.0"),
        ({"rank_wq": -2}, "rank_wq is out of range: got -2"),
        ({"lora_layers": "1-"}, "ranges such as 0-3,7"),
        ({"use_dora": True, "rank_tok_embd": 2}, "with a pair beside the embedding"),
        ({"use_dora": True, "target_modules": ("embed_tokens",)}, "with a pair beside the embed"),
        ({"target_modules": ("attn_(",)}, "a name or a pattern"),
    ],
)
def test_settings_out_of_range(changes, words):
    with pytest.raises(SettingError) as error:
        LoraSettings(**changes)
    assert words in str(error.value)


def test_nothing_to_adapt_is_an_error():
    with pytest.raises(SettingError, match="nothing to adapt"):
        TrainedAdapter(frozen_model("f32").weights, LoraSettings(target_modules=("c_attn",)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_modules": ("q_proj", "qproj")}, "got 'qproj', want names such as"),
        ({"target_modules": (r"blk\.7\..*",)}, "nothing to adapt: got"),
        ({"lora_layers": "0-5"}, "got '0-5' with 2 in it, want blocks from 0 to 1"),
    ],
)
def test_what_is_asked_for_has_to_be_there(changes, words):
    weights = frozen_model("f32").weights
    with pytest.raises(SettingError) as error:
        TrainedAdapter(weights, LoraSettings(**changes))
    assert words in str(error.value)


def test_names_patterns_and_layers_choose_what_is_adapted():
    names = [*frozen_model("f32").weights]

    def chosen(**changes):
        settings = LoraSettings(**changes)
        return {name: settings.rank_of(name) for name in names if settings.rank_of(name)}

    assert [*chosen()] == [name for name in names if "norm" not in name]
    assert [*chosen(use_dora=True)] == [*chosen(rank_tok_embd=0)]
    assert chosen(rank_att_norm=2)["blk.0.attn_norm.weight"] == 2
    assert "output.weight" not in chosen(rank_out=0)
    assert chosen(target_modules=("attn_q",), lora_r=7) == {
        "blk.0.attn_q.weight": 7,
        "blk.1.attn_q.weight": 7,
    }
    assert [*chosen(target_modules=(r"blk\.1\.ffn_.*",))] == [
        name for name in names if name.startswith("blk.1.ffn_")
    ]
    assert not any("blk.0" in name for name in chosen(lora_layers="1-5"))
