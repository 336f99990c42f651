"""What the formats of adapters have a place for, and what the programs that read them can use."""

from __future__ import annotations

from yupana.graphlib.errors import SettingError
from yupana.models.llama import LlamaConfig
from yupana.models.quantize_types import file_type_named
from yupana.train.settings import FinetuneSettings


def without_tied_pair(config: LlamaConfig, settings: FinetuneSettings) -> FinetuneSettings:
    """Settings that leave an embedding alone which is the output as well, if it is not asked for.

    llama.cpp aborts where an adapter has a pair beside such a matrix, and PEFT would apply it to
    the embedding only.

    Raises:
        SettingError: it is asked for, in a format that no program could use.
    """
    if not config.tied or settings.lora_out.suffix == ".bin":
        return settings
    if not settings.target_modules and settings.rank_tok_embd < 0:
        return settings.changed(rank_tok_embd=0)
    if settings.rank_of("token_embd.weight"):
        raise SettingError(
            f"finetune: rank_tok_embd: got a pair beside the embedding with lora_out "
            f"{settings.lora_out}, want none: the output of this model uses the same matrix, and "
            "neither llama.cpp nor PEFT applies the pair there. Write a ggla file (.bin), or train "
            "it whole (--train-whole token_embd.weight)."
        )
    return settings


def check_outputs(settings: FinetuneSettings) -> None:
    """Refuse what could not be written in the end.

    Raises:
        SettingError: the format of the adapter has no place for what is trained.
    """
    if settings.model_out_type is not None:
        file_type_named(settings.model_out_type)
    is_peft = not settings.lora_out.suffix
    if settings.use_dora and not is_peft:
        raise SettingError(
            f"finetune: use_dora: got lora_out {settings.lora_out}, want a folder of PEFT (a name "
            "without ending): no other format has a place for row lengths."
        )
    norms = [n for n in ("out", "att", "ffn") if getattr(settings, f"rank_{n}_norm") > 0]
    if is_peft and norms and not settings.target_modules:
        raise SettingError(
            f"finetune: rank_{norms[0]}_norm: got it with lora_out {settings.lora_out}, want a "
            "GGUF or ggla file: PEFT has no pairs of norms."
        )
    if not (settings.train_whole or settings.has_pairs):
        raise SettingError(
            "finetune: lora_r: got 0 and no train_whole, want something to train: a rank of at "
            "least 1, or patterns of weights, as in --train-whole '*'."
        )
    if settings.train_whole and settings.model_out is None:
        raise SettingError(
            "finetune: train_whole: got no model_out, want a file for the model: adapters have no "
            "place for whole weights."
        )
