"""Files of ggml, llama2.c and finetune built by hand, as their writers lay them out."""

import struct

import numpy as np

WORDS = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the", b"ab", b"<|endoftext|>"]
STARCODER = {"n_vocab": len(WORDS) + 2, "n_ctx": 16, "n_embd": 32, "n_head": 4, "n_layer": 2}


def record(name, values, kind, alignment=1, at=0, shape=None):
    """A tensor of ggml's old containers; `values` are stored as they are."""
    axes = (values.shape if shape is None else shape)[::-1]
    raw = name.encode()
    head = struct.pack(f"<3I{len(axes)}I", len(axes), len(raw), kind, *axes) + raw
    return head + bytes(-(at + len(head)) % alignment) + values.tobytes()


def starcoder_weights(seed=3, n_head_kv=1):
    """Name in GGUF to values, with the heads of keys and values that training had."""
    random = np.random.default_rng(seed)
    D, V, T = (STARCODER[name] for name in ("n_embd", "n_vocab", "n_ctx"))
    K = D // STARCODER["n_head"]
    qkv = D + 2 * n_head_kv * K
    shapes = {"token_embd.weight": (V, D), "position_embd.weight": (T, D)}
    for i in range(STARCODER["n_layer"]):
        for name, shape in (
            ("attn_norm", (D,)), ("attn_qkv", (qkv, D)), ("attn_output", (D, D)),
            ("ffn_norm", (D,)), ("ffn_up", (4 * D, D)), ("ffn_down", (D, 4 * D)),
        ):  # fmt: skip
            shapes[f"blk.{i}.{name}.weight"] = shape
            shapes[f"blk.{i}.{name}.bias"] = shape[:1]
    shapes |= {"output_norm.weight": (D,), "output_norm.bias": (D,)}
    return {
        name: (random.standard_normal(shape) * 0.3).astype(np.float32)
        for name, shape in shapes.items()
    }


def repeated(values):
    """Rows of a fused matrix with one head of keys and values, repeated for each query head."""
    D, H = STARCODER["n_embd"], STARCODER["n_head"]
    q, k, v = np.split(values, (D, D + D // H))
    return np.concatenate([q, *[k] * H, *[v] * H])


def ggml_file(weights, stored=None, file_type=0, head=None, words=None):
    """A file of ggml's starcoder program, as its converter writes it.

    `stored` maps a name to what the file holds instead: (bytes as array, type, shape).
    """
    names = {"token_embd.weight": "model/wte", "position_embd.weight": "model/wpe"}
    names |= {"output_norm.weight": "model/ln_f/g", "output_norm.bias": "model/ln_f/b"}
    names["output.weight"] = "model/lm_head"
    layer = {"attn_norm": "ln_1", "attn_qkv": "attn/c_attn", "attn_output": "attn/c_proj",
             "ffn_norm": "ln_2", "ffn_up": "mlp/c_fc", "ffn_down": "mlp/c_proj"}  # fmt: skip
    sizes = STARCODER if head is None else head
    words = [*WORDS, WORDS[-1], WORDS[-1]] if words is None else words  # the last one repeated
    raw = struct.pack("<I5iI", 0x67676D6C, *sizes.values(), file_type)
    raw += struct.pack("<i", sizes["n_vocab"])
    raw += b"".join(struct.pack("<I", len(word)) + word for word in words)
    for name, values in weights.items():
        old = names.get(name)
        if old is None:
            _, i, kind, part = name.split(".")
            letter = "b" if part == "bias" else "g" if "norm" in kind else "w"
            old = f"model/h{i}/{layer[kind]}/{letter}"
        held, kind, shape = (stored or {}).get(name, (values, 0, values.shape))
        raw += record(old, held, kind, shape=shape)
    return raw


LLAMA2C = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
           "vocab_size": 264, "seq_len": 16}  # fmt: skip


def llama2c_weights(tied, seed=5):
    """Name in GGUF to values."""
    random = np.random.default_rng(seed)
    D, F, V = LLAMA2C["dim"], LLAMA2C["hidden_dim"], LLAMA2C["vocab_size"]
    shapes = {"token_embd.weight": (V, D)}
    for i in range(LLAMA2C["n_layers"]):
        for name, shape in (
            ("attn_norm", (D,)), ("attn_q", (D, D)), ("attn_k", (D // 2, D)),
            ("attn_v", (D // 2, D)), ("attn_output", (D, D)), ("ffn_norm", (D,)),
            ("ffn_gate", (F, D)), ("ffn_down", (D, F)), ("ffn_up", (F, D)),
        ):  # fmt: skip
            shapes[f"blk.{i}.{name}.weight"] = shape
    shapes["output_norm.weight"] = (D,)
    shapes |= {} if tied else {"output.weight": (V, D)}
    return {
        name: (random.standard_normal(shape) * 0.3).astype(np.float32)
        for name, shape in shapes.items()
    }


def llama2c_file(version, weights, group=32):
    """A file of llama2.c, as `export.py` writes each version."""
    tied = "output.weight" not in weights
    sizes = dict(LLAMA2C)
    if version == 0 and not tied:
        sizes["vocab_size"] *= -1
    head = struct.pack("<7i", *sizes.values())
    if version:
        head = struct.pack("<Ii", 0x616B3432, version) + head + bytes([tied])
        head += struct.pack("<i", group) if version == 2 else b""
        head = head.ljust(256, b"\0")
    layers = range(LLAMA2C["n_layers"])

    def every(*kinds):
        return [weights[f"blk.{i}.{kind}.weight"] for kind in kinds for i in layers]

    attention = every("attn_q", "attn_k", "attn_v", "attn_output")
    forward = every("ffn_gate", "ffn_down", "ffn_up")
    end = [] if tied else [weights["output.weight"]]
    embedding, final = [weights["token_embd.weight"]], [weights["output_norm.weight"]]
    if version == 0:
        rotations = [np.ones((LLAMA2C["seq_len"], 4), np.float32)] * 2
        parts = [*embedding, *every("attn_norm"), *attention, *every("ffn_norm"), *forward]
        parts += [*final, *rotations, *end]
    else:
        parts = [*every("attn_norm"), *every("ffn_norm"), *final, *embedding, *attention]
        parts += [*forward, *end]
    return head + b"".join(
        grouped(part, group)[0] if version == 2 and part.ndim == 2 else part.tobytes()
        for part in parts
    )


def grouped(values, group):
    """The bytes of a matrix of version 2, and what they stand for."""
    rows = values.reshape(-1, group)
    scales = np.abs(rows).max(1, keepdims=True) / np.float32(127)
    levels = np.round(rows / scales).astype(np.int8)
    return levels.tobytes() + scales.tobytes(), (levels * scales).reshape(values.shape)


def tokenizer_bin(as_characters):
    """A `tokenizer.bin` of 264 tokens; byte tokens as single characters in most versions."""
    words = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
    words += [
        chr(b).encode() if as_characters else b"<0x%02X>" % b for b in range(256)
    ] + [b" t", b"h", b" th", b"e", b" the"]  # fmt: skip
    scores = [0.0] * 259 + [-1e6, -1e6, -1.0, -1e6, -2.0]
    raw = struct.pack("<I", max(map(len, words)))
    return raw + b"".join(
        struct.pack("<fI", score, len(word)) + word
        for word, score in zip(words, scores, strict=True)
    )


def ggla_file(pairs, rank, alpha):
    """An adapter: `pairs` maps a weight's name to (A, B) in ggla's orientation."""
    raw = struct.pack("<4I", 0x67676C61, 1, rank, alpha)
    for name, (a, b) in pairs.items():
        for suffix, values in ((".loraA", a), (".loraB", b)):
            kind = {"float32": 0, "float16": 1}[values.dtype.name]
            raw += record(name + suffix, values, kind, 32, len(raw))
    return raw
