"""The same models written in torch: loss and every gradient must agree."""

import math

import numpy as np
import pytest

from yupana.graphlib.graph import Graph
from yupana.models.baby_llama import BabyLlama, baby_config, example
from yupana.models.llama import Llama, LlamaConfig

torch = pytest.importorskip("torch", reason="torch is not installed")

B, T = 3, 16
CONFIGS = {
    "all heads": {},
    "grouped heads": {"n_head_kv": 2},
    "one head of keys": {"n_head_kv": 1, "n_layer": 1},
    "part rotated, other base": {"n_rot": 4, "rope_base": 500.0, "rope_scale": 0.5},
    "tied": {"tied": True},
    "four blocks": {"n_embd": 128, "n_layer": 4},
}


def make_config(**changes):
    sizes = {"n_vocab": 65, "n_ctx": T, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_mult": 8}
    return LlamaConfig(**{**sizes, **changes})


class Reference:
    """The forward pass in torch, on copies of a model's weights."""

    def __init__(self, model):
        self.c = model.config
        self.w = {
            name: torch.tensor(weight.numpy(), requires_grad=True)
            for name, weight in model.weights.items()
        }

    def linear(self, name, x):
        if f"{name}.a" in self.w:
            return x @ self.w[f"{name}.b"].T @ self.w[f"{name}.a"].T
        return x @ self.w[f"{name}.weight"].T

    def norm(self, name, x):
        mean = x.pow(2).mean(-1, keepdim=True)
        return x / torch.sqrt(mean + self.c.rms_eps) * self.w[f"{name}.weight"]

    def rope(self, x):  # (B, H, T, K): pairs of neighbours as complex numbers
        c, n = self.c, self.c.n_rot
        rates = c.rope_base ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
        angles = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * c.rope_scale * rates
        turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
        pairs = torch.view_as_complex(x[..., :n].unflatten(-1, (-1, 2)).contiguous())
        turned = torch.view_as_real(pairs * turns).flatten(-2)
        return torch.cat([turned, x[..., n:]], -1)

    def attention(self, i, x):
        c = self.c

        def heads(name, n):
            return self.linear(f"blk.{i}.{name}", x).unflatten(-1, (n, -1)).transpose(1, 2)

        q, k, v = (
            heads("attn_q", c.n_head),
            heads("attn_k", c.n_head_kv),
            heads("attn_v", c.n_head_kv),
        )
        group = c.n_head // c.n_head_kv
        q, k = self.rope(q), self.rope(k).repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(c.head_width)
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        mixed = weights @ v.repeat_interleave(group, 1)
        return self.linear(f"blk.{i}.attn_output", mixed.transpose(1, 2).flatten(-2))

    def logits(self, tokens):
        x = self.w["token_embd.weight"][tokens]
        for i in range(self.c.n_layer):
            x = x + self.attention(i, self.norm(f"blk.{i}.attn_norm", x))
            h = self.norm(f"blk.{i}.ffn_norm", x)
            gate = torch.nn.functional.silu(self.linear(f"blk.{i}.ffn_gate", h))
            x = x + self.linear(f"blk.{i}.ffn_down", gate * self.linear(f"blk.{i}.ffn_up", h))
        x = self.norm("output_norm", x)
        return x @ self.w["token_embd.weight"].T if self.c.tied else self.linear("output", x)


def assert_gradients_agree(model, loss, reference, reference_loss, **options):
    graph = Graph(loss)
    grads = graph.backward(loss, **options)
    graph.compile(threads=1).run()
    reference_loss.backward()
    assert loss.item() == pytest.approx(reference_loss.item(), rel=1e-4)
    assert set(grads) == set(model.weights.values())
    for name, weight in model.weights.items():
        want = reference.w[name].grad.numpy()
        error = np.linalg.norm(grads[weight].numpy() - want) / np.linalg.norm(want)
        assert error < 1e-4, f"gradient of {name} is off by {error:.1e}"


@pytest.mark.parametrize("checkpoints", [None, "sqrt"])
@pytest.mark.parametrize("name", CONFIGS)
def test_llama_training_step_agrees(name, checkpoints):
    config = make_config(**CONFIGS[name])
    model = Llama(config).init(seed=7)
    random = np.random.default_rng(3)
    for weight in model.weights.values():  # norms that differ, and activations of order one
        weight.set(weight.numpy() * 5 if weight.ndim == 2 else random.uniform(0.5, 2, weight.shape))
    ids = random.integers(0, config.n_vocab, (B, T + 1), dtype=np.int32)
    mask = (random.random((B, T)) < 0.7).astype(np.float32)
    tokens, targets = model.context.tensor(ids[:, :-1]), model.context.tensor(ids[:, 1:])
    loss = model.loss(tokens, targets, model.context.tensor(mask))
    reference = Reference(model)
    logits = reference.logits(torch.tensor(ids[:, :-1]).long())
    costs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(ids[:, 1:]).long().flatten(), reduction="none"
    )
    weights = torch.tensor(mask).flatten()
    reference_loss = (costs * weights).sum() / weights.sum()
    assert_gradients_agree(model, loss, reference, reference_loss, checkpoints=checkpoints)


@pytest.mark.parametrize("n_lora", [None, 64, 3])
@pytest.mark.parametrize("n_head_kv", [8, 2])
def test_baby_llama_training_step_agrees(n_lora, n_head_kv):
    config = baby_config(n_head_kv=n_head_kv)
    model = BabyLlama(config, n_lora).init()
    tokens, targets = example(5, config)
    loss = model.squared_error(model.context.tensor(tokens), model.context.tensor(targets))
    reference = Reference(model)
    logits = reference.logits(torch.tensor(tokens).long())
    assert_gradients_agree(model, loss, reference, (torch.tensor(targets) - logits).pow(2).sum())


def test_a_gradient_wrong_by_one_part_in_a_thousand_is_caught():
    config = baby_config()
    model = BabyLlama(config).init()
    tokens, targets = example(5, config)
    loss = model.squared_error(model.context.tensor(tokens), model.context.tensor(targets))
    reference = Reference(model)
    logits = reference.logits(torch.tensor(tokens).long())
    reference.w["blk.0.attn_k.weight"].register_hook(lambda g: g * 1.001)
    with pytest.raises(AssertionError, match=r"gradient of blk\.0\.attn_k\.weight is off"):
        assert_gradients_agree(
            model, loss, reference, (torch.tensor(targets) - logits).pow(2).sum()
        )
