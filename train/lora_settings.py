"""What LoRA adapts, and how: the settings of `yupana finetune` that concern the adapter."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated

from tyro.conf import arg

from yupana.graphlib.errors import SettingError, require

# Names of the parts of a block, as files, PEFT's target_modules and finetune's flags have them.
_GROUPS = {
    "token_embd": ("embed_tokens", "rank_tok_embd"),
    "output_norm": ("norm", "rank_out_norm"),
    "output": ("lm_head", "rank_out"),
    "attn_norm": ("input_layernorm", "rank_att_norm"),
    "attn_q": ("q_proj", "rank_wq"),
    "attn_k": ("k_proj", "rank_wk"),
    "attn_v": ("v_proj", "rank_wv"),
    "attn_output": ("o_proj", "rank_wo"),
    "ffn_norm": ("post_attention_layernorm", "rank_ffn_norm"),
    "ffn_gate": ("gate_proj", "rank_w1"),
    "ffn_down": ("down_proj", "rank_w2"),
    "ffn_up": ("up_proj", "rank_w3"),
}
_EMBEDDING = "token_embd.weight"
_WEIGHT = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.weight")


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What is adapted, and how; flags have finetune's names.

    Norms are left alone by default, where finetune gives them rank 1: llama.cpp reads pairs of
    norms and does not apply them, and PEFT has none.

    Raises:
        SettingError: a setting outside its range, or a range of layers that is none.

    >>> LoraSettings(lora_r=8).rank_of("blk.0.attn_q.weight")
    8
    >>> LoraSettings(target_modules=("q_proj", "v_proj")).rank_of("blk.0.attn_k.weight")
    0
    """

    # Rank of the pairs; 0: none, where no other rank says else.
    lora_r: int = 4
    # What B · A adds is multiplied by alpha / rank; 0: as lora-r.
    lora_alpha: float = 0.0
    # Rank of the embedding; -1: lora-r, but none with use-dora, or if it is the output matrix,
    # too; 0: not adapted.
    rank_tok_embd: int = -1
    # Rank of the norm before the output.
    rank_out_norm: int = 0
    # Rank of the output matrix.
    rank_out: int = -1
    # Rank of the norms before attention.
    rank_att_norm: int = 0
    # Rank of the matrices of queries.
    rank_wq: int = -1
    # Rank of the matrices of keys.
    rank_wk: int = -1
    # Rank of the matrices of values.
    rank_wv: int = -1
    # Rank of the matrices that attention ends with.
    rank_wo: int = -1
    # Rank of the norms before the feed-forward layers.
    rank_ffn_norm: int = 0
    # Rank of the gates of the feed-forward layers.
    rank_w1: Annotated[int, arg(aliases=["--rank-ffn-gate"])] = -1
    # Rank of the matrices that feed-forward layers end with.
    rank_w2: Annotated[int, arg(aliases=["--rank-ffn-down"])] = -1
    # Rank of the matrices that feed-forward layers begin with.
    rank_w3: Annotated[int, arg(aliases=["--rank-ffn-up"])] = -1
    # Adapt only these, with rank lora-r: names as q_proj or attn_q, all-linear, or patterns that
    # match a whole name like blk.0.attn_q.weight.
    target_modules: tuple[str, ...] = ()
    # Adapt only these blocks, as 0-3,7; empty: all.
    lora_layers: str = ""
    # Share of the inputs of A that are dropped in training.
    lora_dropout: float = 0.0
    # Multiply by alpha / sqrt(rank) instead of alpha / rank (rsLoRA).
    use_rslora: bool = False
    # Train the lengths of the rows of the sum W + B · A by themselves (DoRA).
    use_dora: bool = False
    # Weights to train as a whole, in f32, beside the adapter or, with lora-r 0, instead of one:
    # patterns that match names, as "*_norm.weight", or "*" for all. A run needs model-out for
    # them, since adapters have no place for them.
    train_whole: tuple[str, ...] = ()
    # Weights of train-whole that stay as they are, as "blk.[0-3].*" for the first four blocks.
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ranks = [f.name for f in fields(self) if f.name.startswith("rank_")]
        for name, least in (("lora_r", 0), ("lora_alpha", 0), *((name, -1) for name in ranks)):
            value = getattr(self, name)
            require("lora", name, value, least <= value < math.inf, f"at least {least}")
        is_share = 0 <= self.lora_dropout < 1
        require("lora", "lora_dropout", self.lora_dropout, is_share, "0 <= p < 1")
        for pattern in self.target_modules:
            try:
                re.compile(pattern)
            except re.error as e:
                raise SettingError(
                    f"lora: target_modules: got {pattern!r}, want a name or a pattern: {e}."
                ) from None
        layers(self.lora_layers)
        if self.use_dora and self.rank_of(_EMBEDDING):
            raise SettingError(
                "lora: use_dora: got it with a pair beside the embedding, want none: PEFT's DoRA "
                "scales the columns of an embedding, which cannot be trained here. Leave "
                "embed_tokens out of target_modules, and rank_tok_embd at 0."
            )

    @property
    def has_pairs(self) -> bool:
        """Whether there is a rank above 0."""
        ranks = [getattr(self, f.name) for f in fields(self) if f.name.startswith("rank_")]
        return self.lora_r > 0 or (not self.target_modules and max(ranks) > 0)

    @property
    def alpha(self) -> float:
        """The factor's numerator."""
        return self.lora_alpha or float(self.lora_r)

    def factor(self, rank: int) -> float:
        """s for a pair of this rank."""
        return (self.alpha or rank) / (math.sqrt(rank) if self.use_rslora else rank)

    def rank_of(self, weight: str) -> int:
        """Rank of the pair beside a weight; 0: it has none."""
        found = _WEIGHT.fullmatch(weight)
        if found is None or found[2] not in _GROUPS:
            return 0
        if found[1] and self.lora_layers and int(found[1]) not in layers(self.lora_layers):
            return 0
        other, flag = _GROUPS[found[2]]
        if self.target_modules:
            is_asked = any(_matches(t, weight, found[2], other) for t in self.target_modules)
            return self.lora_r if is_asked else 0
        rank: int = getattr(self, flag)
        if rank < 0 and self.use_dora and weight == _EMBEDDING:
            return 0
        return self.lora_r if rank < 0 else rank

    def check_weights(self, weights: Iterable[str]) -> None:
        """Check that all that is asked for is in a model.

        Raises:
            SettingError: names of modules that match no weight, or blocks that are not there.
        """
        found = [match for match in map(_WEIGHT.fullmatch, weights) if match]
        for target in self.target_modules:
            names = ((m[0], m[2], _GROUPS[m[2]][0]) for m in found if m[2] in _GROUPS)
            if not any(_matches(target, *name) for name in names):
                raise SettingError(
                    f"lora: target_modules: nothing to adapt: got {target!r}, want names such as "
                    r"q_proj or attn_q, all-linear, or patterns such as 'blk\.\d+\.ffn_.*'. "
                    "`yupana inspect` lists the weights of a model."
                )
        n_blocks = 1 + max((int(m[1]) for m in found if m[1]), default=-1)
        if missing := [n for n in sorted(layers(self.lora_layers)) if n >= n_blocks]:
            raise SettingError(
                f"lora: lora_layers: got {self.lora_layers!r} with {missing[0]} in it, want blocks "
                f"from 0 to {n_blocks - 1}."
            )


def layers(text: str) -> frozenset[int]:
    """The numbers in a list of ranges such as "0-3,7".

    Raises:
        SettingError: it is no such list.

    >>> sorted(layers("0-2,5"))
    [0, 1, 2, 5]
    """
    found: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if ends is None:
            raise SettingError(f"lora: lora_layers: got {part!r}, want ranges such as 0-3,7.")
        found.update(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return frozenset(found)


def _matches(pattern: str, weight: str, name: str, other: str) -> bool:
    if pattern == "all-linear":
        return name.startswith(("attn_", "ffn_")) and not name.endswith("norm")
    return pattern in (name, other, weight) or bool(re.fullmatch(pattern, weight))
