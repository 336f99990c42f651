"""Small Llamas and Qwens as folders of Hugging Face's hub, and what transformers makes of them."""

import json
import math

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

TEXT = (
    "Once upon a time there was a llama who lived on the high plain. The llama's friends were "
    "3 vicuñas and 14 alpacas; they'd count to 100, 1000 and 10000 all day.\n\n\tWe'll see.\n"
) * 4
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def byte_level_tokenizer(splitting, n_vocab=300):
    """A tokenizer of the GPT-2 family, trained on TEXT."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting == "gpt-2")
    before = {
        "gpt-2": [],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
        "starcoder": [pre_tokenizers.Digits(individual_digits=True)],
    }[splitting]
    if splitting == "starcoder":
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole = splitting == "llama-bpe"
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=n_vocab, initial_alphabet=sorted(alphabet), show_progress=False,
        special_tokens=["<|begin|>", "<|end|>"],
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    if whole:
        tokenizer.post_processor = TemplateProcessing("<|begin|> $A", None, [("<|begin|>", 0)])
    return tokenizer


def sentencepiece_tokenizer():
    """A tokenizer as Llama 2's: BPE with bytes to fall back to, every pair that can be a merge."""
    words = ["\u2581the", "\u2581llama", "\u2581a", "al", "ll", "lla", "am", "ama", "lama", "the"]
    words += ["\u2581t", "\u2581l", "he", "th", "llama", "lam", "la", "\u2581ll"]
    letters = sorted(set("\u2581themalx.,"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters, *words]
    ids = {token: k for k, token in enumerate(tokens)}
    merges = [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in ids and word[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    tokenizer.post_processor = TemplateProcessing("<s> $A", None, [("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def config(n_vocab, **changes):
    """`config.json` of a Llama of two layers with grouped heads."""
    usual = {
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "vocab_size": n_vocab,
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    return usual | changes


QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6, "rope_theta": 1e6}
QWEN3 = QWEN2 | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16}


def weights(c, seed=1, bias=False):
    """Random weights under the hub's names."""
    kind = c["architectures"][0]
    bias = bias or kind.startswith("Qwen2")
    random = np.random.default_rng(seed)
    D, F, V = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    K = c.get("head_dim", D // c["num_attention_heads"])
    Q, G = c["num_attention_heads"] * K, c["num_key_value_heads"] * K
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (V, D)
    for i in range(c["num_hidden_layers"]):
        layer = {
            "input_layernorm": (D,), "post_attention_layernorm": (D,), "self_attn.q_proj": (Q, D),
            "self_attn.k_proj": (G, D), "self_attn.v_proj": (G, D), "self_attn.o_proj": (D, Q),
            "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D), "mlp.down_proj": (D, F),
        }  # fmt: skip
        if kind.startswith("Qwen3"):
            layer |= {"self_attn.q_norm": (K,), "self_attn.k_norm": (K,)}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        if bias:
            names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
            shapes |= {f"model.layers.{i}.{name}.bias": layer[name][:1] for name in names}
    return {
        name: (random.standard_normal(shape) * 0.3 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(folder, c, tensors, tokenizer=None, n_parts=1, **files):
    """The folder; with more than one part, an index as well."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(c))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if n_parts == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    places = {}
    for k in range(n_parts):
        part = f"model-{k + 1:05}-of-{n_parts:05}.safetensors"
        names = sorted(tensors)[k::n_parts]
        save_file({name: tensors[name] for name in names}, folder / part)
        places |= dict.fromkeys(names, part)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def rotation(c):
    """Radians per position of each pair, and a factor, as transformers' rope utilities give."""
    K = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    r = c.get("rope_scaling") or {}
    kind = r.get("rope_type", "default")
    speeds = c["rope_theta"] ** (-np.arange(0, K, 2) / K)
    if kind == "linear":
        return speeds / r["factor"], 1.0
    if kind == "llama3":
        old, waves = r["original_max_position_embeddings"], 2 * math.pi / speeds
        smooth = (old / waves - r["low_freq_factor"]) / (
            r["high_freq_factor"] - r["low_freq_factor"]
        )
        between = (1 - smooth) * speeds / r["factor"] + smooth * speeds
        slow = np.where(waves > old / r["low_freq_factor"], speeds / r["factor"], between)
        return np.where(waves < old / r["high_freq_factor"], speeds, slow), 1.0
    if kind == "yarn":
        old = r["original_max_position_embeddings"]

        def pair_of(turns):
            return K * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(c["rope_theta"]))

        low = max(math.floor(pair_of(r.get("beta_fast", 32))), 0)
        high = min(math.ceil(pair_of(r.get("beta_slow", 1))), K - 1)
        ramp = np.clip((np.arange(K // 2) - low) / max(high - low, 1e-3), 0, 1)
        speeds = speeds / r["factor"] * ramp + speeds * (1 - ramp)
        return speeds, r.get("attention_factor", 0.1 * math.log(r["factor"]) + 1)
    return speeds, 1.0


def logits(c, tensors, ids):
    """(T, V) in float64: transformers' Llama or Qwen, with its pairs (i, i + K/2)."""
    w = {name: values.astype(np.float64) for name, values in tensors.items()}
    H, G = c["num_attention_heads"], c["num_key_value_heads"]
    K = c.get("head_dim", c["hidden_size"] // H)
    T = len(ids)
    speeds, magnitude = rotation(c)
    angles = np.tile(np.arange(T)[:, None] * speeds, 2)  # (T, K)
    cos, sin = np.cos(angles) * magnitude, np.sin(angles) * magnitude

    def rotated(x):  # (heads, T, K)
        half = np.concatenate([-x[..., K // 2 :], x[..., : K // 2]], -1)
        return x * cos + half * sin

    def norm(x, name):
        mean = np.mean(x * x, -1, keepdims=True)
        return x / np.sqrt(mean + c["rms_norm_eps"]) * w[name]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    x = w["model.embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm.weight")
        q, k, v = (
            linear(h, f"{layer}.self_attn.{n}_proj").reshape(T, heads, K).swapaxes(0, 1)
            for n, heads in (("q", H), ("k", G), ("v", G))
        )
        if f"{layer}.self_attn.q_norm.weight" in w:
            q, k = (
                norm(q, f"{layer}.self_attn.q_norm.weight"),
                norm(k, f"{layer}.self_attn.k_norm.weight"),
            )
        q, k = rotated(q), np.repeat(rotated(k), H // G, 0)
        scores = q @ k.swapaxes(1, 2) / math.sqrt(K) + np.triu(np.full((T, T), -np.inf), 1)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (p / p.sum(-1, keepdims=True)) @ np.repeat(v, H // G, 0)
        x = x + linear(mixed.swapaxes(0, 1).reshape(T, H * K), f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm.weight")
        gate = linear(h, f"{layer}.mlp.gate_proj")
        h = gate / (1 + np.exp(-gate)) * linear(h, f"{layer}.mlp.up_proj")
        x = x + linear(h, f"{layer}.mlp.down_proj")
    head = "model.embed_tokens" if c["tie_word_embeddings"] else "lm_head"
    return linear(norm(x, "model.norm.weight"), head)
