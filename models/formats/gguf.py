"""GGUF, the model file of ggml and llama.cpp: one door to its reader and its writer.

A file is: magic, version, two counts; key/value metadata; one record per tensor (name, axes,
type, offset); then, from the next multiple of `general.alignment`, the tensors' bytes.
"""

from yupana.models.formats.gguf_header import TensorInfo
from yupana.models.formats.gguf_reader import GgufFile, Progress
from yupana.models.formats.gguf_writer import write_gguf

__all__ = ["GgufFile", "Progress", "TensorInfo", "write_gguf"]
