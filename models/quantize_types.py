"""Which type each tensor of a model gets when the model is quantised: the rules of llama.cpp.

They are those for dense models without an importance matrix (`llama_tensor_get_type`), by layer
number. Rows that Q2_K and Q3_K do not fit become Q4_0, as in the newest and the oldest versions;
between these it was IQ4_NL, a type of the same size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yupana.graphlib.errors import SettingError
from yupana.models.file_types import FILE_TYPES
from yupana.models.formats import expect
from yupana.models.formats.gguf_types import TENSOR_TYPE_BY_NAME

# Names people use -> names of FILE_TYPES.
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_FALLBACK |= {"IQ4_XS": "IQ4_NL"}
_LISTED = ("IQ4_NL", "IQ4_XS")
# Matrices by name that stay as they are: positions, token types, and what steers experts and
# recurrences.
_KEPT = ("position_embd.weight", "token_types.weight")
_KEPT_PARTS = (
    *("_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d.weight", "attn_rel_b.weight"),
    *("time_mix_first.weight", "time_mix_w1.weight", "time_mix_w2.weight"),
    *("time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight"),
)

# Part of a name -> file type -> type, where layers are alike.
_MIXED = {
    "attn_output.weight": {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"},
    "attn_qkv.weight": {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"},
}


def file_type_named(name: str) -> str:
    """The file type that a user means.

    Raises:
        SettingError: no such type.

    >>> file_type_named("q4_k")
    'Q4_K_M'
    """
    wanted = _ALIASES.get(name.upper(), name.upper())
    if wanted not in FILE_TYPES:
        raise SettingError(
            f"quantize: no such type: got {name!r}, want one of {', '.join(FILE_TYPES)}."
        )
    return wanted


@dataclass(frozen=True)
class Mixture:
    """The rules for one model.

    Attributes:
        file_type: what was asked for, as "Q4_K_M".
        n_layer: of the model.
        n_gqa: queries that share a head of keys and values.
        has_output: whether the output has a matrix of its own.
        is_pure: every matrix gets the file's main type.
    """

    file_type: str
    n_layer: int
    n_gqa: int
    has_output: bool
    is_pure: bool = False

    @classmethod
    def of_model(
        cls, file_type: str, metadata: Mapping[str, Any], has_output: bool, is_pure: bool = False
    ) -> "Mixture":
        """The rules for a file by its metadata.

        Raises:
            FileFormatError: an entry is missing or of the wrong type.
        """
        architecture = expect(metadata, "general.architecture", str)
        n_head = expect(metadata, f"{architecture}.attention.head_count", int, 1)
        n_head_kv = expect(metadata, f"{architecture}.attention.head_count_kv", int, n_head)
        n_layer = expect(metadata, f"{architecture}.block_count", int)
        return cls(file_type, n_layer, n_head // max(1, n_head_kv), has_output, is_pure)

    @property
    def main_type(self) -> str:
        """The type of most matrices.

        >>> Mixture("Q4_K_M", 4, 1, True).main_type
        'Q4_K'
        """
        return self.file_type.removesuffix("_S").removesuffix("_M").removesuffix("_L")

    def type_of(self, name: str, shape: tuple[int, ...]) -> str | None:
        """The type a tensor gets, or None where it stays as it is.

        >>> mixture = Mixture("Q4_K_M", n_layer=4, n_gqa=1, has_output=True)
        >>> mixture.type_of("blk.0.attn_q.weight", (256, 256))
        'Q4_K'
        >>> mixture.type_of("blk.3.attn_v.weight", (256, 256))
        'Q6_K'
        >>> mixture.type_of("blk.0.attn_q.weight", (40, 96))
        'Q5_0'
        >>> mixture.type_of("output_norm.weight", (256,)) is None
        True
        """
        if not name.endswith("weight") or len(shape) < 2:
            return None
        if name in _KEPT or any(part in name for part in _KEPT_PARTS):
            return None
        if self.is_pure or self.main_type in ("F32", "F16", "BF16"):
            wanted = self.main_type
        else:
            wanted = self._mixed(name, shape)
        return _fitting(wanted, shape[-1])

    def _mixed(self, name: str, shape: tuple[int, ...]) -> str:
        if name == "output.weight" or (name == "token_embd.weight" and not self.has_output):
            fits = shape[-1] % TENSOR_TYPE_BY_NAME[self.main_type].block == 0
            return "Q6_K" if fits and self.main_type != "Q8_0" else "Q8_0"
        layer = _layer_of(name)
        if "attn_v.weight" in name:
            return self._values_type(layer)
        if "ffn_down" in name:
            return self._down_type(layer)
        for part, types in _MIXED.items():
            if part in name:
                return types.get(self.file_type, self.main_type)
        return self.main_type

    def _values_type(self, layer: int) -> str:
        wanted = {
            "Q2_K": "Q4_K" if self.n_gqa >= 4 else "Q3_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if layer < 4 else "Q4_K",
            "Q4_K_M": "Q6_K" if self._has_more_bits(layer) else "Q4_K",
            "Q5_K_M": "Q6_K" if self._has_more_bits(layer) else "Q5_K",
            **dict.fromkeys(_LISTED, "Q5_K" if self.n_gqa >= 4 else self.main_type),
        }.get(self.file_type, self.main_type)
        # LLaMA 70B: eight queries share these, so more bits cost next to nothing.
        is_70b = self.n_layer == 80 and self.n_gqa > 1
        return "Q5_K" if is_70b and wanted in ("Q3_K", "Q4_K") else wanted

    def _down_type(self, layer: int) -> str:
        n = self.n_layer
        return {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if layer < n // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if layer < n // 8 else "Q4_K",
            "Q4_K_M": "Q6_K" if self._has_more_bits(layer) else "Q4_K",
            "Q5_K_M": "Q6_K" if self._has_more_bits(layer) else "Q5_K",
            **dict.fromkeys(_LISTED, "Q5_K" if layer < n // 8 else self.main_type),
        }.get(self.file_type, self.main_type)

    def _has_more_bits(self, layer: int) -> bool:
        """The first and last eighth of the layers, and every third between."""
        n = self.n_layer
        return layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2


def _layer_of(name: str) -> int:
    """The number in "blk.N."; 0 where there is none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and parts[1].isdecimal() else 0


def _fitting(wanted: str, width: int) -> str:
    """The type itself, or what rows that are not whole blocks of it get."""
    for choice in (wanted, _FALLBACK.get(wanted, "F16")):
        if width % TENSOR_TYPE_BY_NAME[choice].block == 0:
            return choice
    return "F16"
