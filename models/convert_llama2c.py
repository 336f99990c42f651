"""Models of llama2.c as GGUF: the same weights under other names."""

from yupana.models.conversion import Conversion, renamed
from yupana.models.formats.llama2c import Llama2cFile
from yupana.models.llama import LlamaConfig
from yupana.models.llama_gguf import llama_metadata

_NAMES = {
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


def convert_llama2c(file: Llama2cFile) -> Conversion:
    """The model in GGUF's names; llama2.c pairs neighbours in its rotation, as ggml does."""
    s = file.sizes
    config = LlamaConfig(
        n_vocab=s["vocab_size"],
        n_ctx=s["seq_len"],
        n_embd=s["dim"],
        n_layer=s["n_layers"],
        n_head=s["n_heads"],
        n_head_kv=s["n_kv_heads"],
        n_ff=s["hidden_dim"],
        tied="output" not in file.tensors,
    )
    names = {"tok_embeddings": "token_embd.weight"}
    for i in range(config.n_layer):
        names |= {f"layers.{i}.{old}": f"blk.{i}.{new}.weight" for old, new in _NAMES.items()}
    names["norm"] = "output_norm.weight"
    if not config.tied:
        names["output"] = "output.weight"
    return Conversion(llama_metadata(config), renamed(file.tensors, names))
