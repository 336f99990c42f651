"""StarCoder's sizes in GGUF files, with the keys of llama.cpp."""

from typing import Any

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.conversion import Described
from yupana.models.formats import expect, expect_size, place_of
from yupana.models.llama_gguf import check_blocks
from yupana.models.starcoder import StarCoderConfig


def starcoder_metadata(config: StarCoderConfig) -> dict[str, Any]:
    """The architecture's entries, as llama.cpp reads them."""
    c = config
    return {
        "general.architecture": "starcoder",
        "starcoder.vocab_size": c.n_vocab,
        "starcoder.context_length": c.n_ctx,
        "starcoder.embedding_length": c.n_embd,
        "starcoder.block_count": c.n_layer,
        "starcoder.feed_forward_length": c.n_ff,
        "starcoder.attention.head_count": c.n_head,
        "starcoder.attention.head_count_kv": c.n_head_kv,
        "starcoder.attention.layer_norm_epsilon": c.norm_eps,
    }


def read_starcoder_config(file: Described) -> StarCoderConfig:
    """The sizes of the model in a file.

    Raises:
        FileFormatError: an entry is missing, wrong, or out of range.
    """
    m = file.metadata
    n_head = expect_size(m, "starcoder.attention.head_count")
    n_layer = expect_size(m, "starcoder.block_count")
    check_blocks(file, "starcoder.block_count", n_layer)
    try:
        return StarCoderConfig(
            n_vocab=file.tensors["token_embd.weight"].shape[0],
            n_ctx=file.tensors["position_embd.weight"].shape[0],
            n_embd=expect_size(m, "starcoder.embedding_length"),
            n_layer=min(n_layer, len(file.tensors)),
            n_head=n_head,
            n_head_kv=expect_size(m, "starcoder.attention.head_count_kv", n_head),
            n_ff=expect_size(m, "starcoder.feed_forward_length"),
            norm_eps=expect(m, "starcoder.attention.layer_norm_epsilon", float),
            tied="output.weight" not in file.tensors,
        )
    except SettingError as e:
        key = f"starcoder.{_ENTRIES.get(e.setting)}"
        where = place_of(m, key) if key in m else file.path
        raise FileFormatError(f"{where}: the sizes do not fit: {e}") from None
    except (IndexError, OverflowError) as e:
        raise FileFormatError(f"{file.path}: the sizes do not fit: {e}") from None


# Fields of a config, and the entries that they come from.
_ENTRIES = {
    "n_embd": "embedding_length",
    "n_head": "attention.head_count",
    "n_head_kv": "attention.head_count_kv",
    "norm_eps": "attention.layer_norm_epsilon",
}
