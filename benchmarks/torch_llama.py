"""The LLaMA of `yupana.models` in eager PyTorch, as its users would write it: the other side."""

import torch
import torch.nn.functional as F
from torch import Tensor

from yupana.models.llama import Llama, LlamaConfig
from yupana.train.lora import TrainedAdapter


class TorchLlama:
    """Weights copied from a `Llama`; fused attention and norms where PyTorch has them."""

    def __init__(self, model: Llama) -> None:
        self.config: LlamaConfig = model.config
        self.weights = {
            name: torch.from_numpy(weight.numpy()).requires_grad_()
            for name, weight in model.weights.items()
        }
        self.pairs: dict[str, tuple[Tensor, Tensor, float]] = {}
        c = self.config
        pairs = torch.arange(0, c.n_rot, 2, dtype=torch.float64)
        angles = torch.arange(c.n_ctx).double()[:, None] / c.rope_base ** (pairs / c.n_rot)
        self.cos = angles.cos().float()[None, :, None]  # (1, T, 1, K/2)
        self.sin = angles.sin().float()[None, :, None]

    def adapt(self, adapter: TrainedAdapter) -> list[Tensor]:
        """Freeze the weights and train an adapter's pairs beside them; returns the parameters."""
        for weight in self.weights.values():
            weight.requires_grad_(False)
        for name, pair in adapter.pairs.items():
            a, b = (torch.from_numpy(t.numpy()).requires_grad_() for t in (pair.a, pair.b))
            self.pairs[name] = a, b, pair.factor
        return [part for a, b, _ in self.pairs.values() for part in (a, b)]

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x · Wᵀ, and what an adapter adds."""
        y = x @ self.weights[name].T
        if name in self.pairs:
            a, b, factor = self.pairs[name]
            y = y + (x @ a.T) @ b.T * factor
        return y

    def rope(self, x: Tensor) -> Tensor:
        """Rotate neighbouring pairs of (B, T, H, K)."""
        a, b = x[..., 0::2], x[..., 1::2]
        cos, sin = self.cos[:, : x.shape[1]], self.sin[:, : x.shape[1]]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def logits(self, tokens: Tensor) -> Tensor:
        """(B, T) to (B, T, V)."""
        c, w = self.config, self.weights
        B, T = tokens.shape
        H, G, K = c.n_head, c.n_head_kv, c.head_width
        x = F.embedding(tokens, w["token_embd.weight"])
        if "token_embd.weight" in self.pairs:
            a, b, factor = self.pairs["token_embd.weight"]
            x = x + F.embedding(tokens, b) @ a * factor
        for i in range(c.n_layer):
            p = f"blk.{i}"
            h = F.rms_norm(x, (c.n_embd,), w[f"{p}.attn_norm.weight"], c.rms_eps)
            q = self.rope(self.linear(f"{p}.attn_q.weight", h).view(B, T, H, K)).transpose(1, 2)
            k = self.rope(self.linear(f"{p}.attn_k.weight", h).view(B, T, G, K)).transpose(1, 2)
            v = self.linear(f"{p}.attn_v.weight", h).view(B, T, G, K).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != G)
            y = y.transpose(1, 2).reshape(B, T, c.n_embd)
            x = x + self.linear(f"{p}.attn_output.weight", y)
            h = F.rms_norm(x, (c.n_embd,), w[f"{p}.ffn_norm.weight"], c.rms_eps)
            gate = F.silu(self.linear(f"{p}.ffn_gate.weight", h))
            up = self.linear(f"{p}.ffn_up.weight", h)
            x = x + self.linear(f"{p}.ffn_down.weight", gate * up)
        x = F.rms_norm(x, (c.n_embd,), w["output_norm.weight"], c.rms_eps)
        return self.linear("output.weight", x)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy."""
        logits = self.logits(tokens)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten().long())
