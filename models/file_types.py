"""Kinds of model files by the type of most of their tensors: `general.file_type` of GGUF."""

FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
}
# Types of tensors that give no file type their own name.
_PLAIN = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}
BLOCKS_VERSION = 2  # `general.quantization_version`: the layout of blocks since May 2023


def file_type_of(tensor_type: str) -> int:
    """The number for a file whose matrices all have one type.

    >>> file_type_of("F16"), file_type_of("Q4_K")
    (1, 14)
    """
    return FILE_TYPES[_PLAIN.get(tensor_type, tensor_type)]
