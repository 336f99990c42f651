"""ggml's own quantisers, from the library inside the llama_cpp package, where that is installed."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yupana.graphlib import quants


@cache
def _ggml() -> ctypes.CDLL:
    package = pytest.importorskip("llama_cpp")
    library = ctypes.CDLL(str(Path(package.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


def quantize(x: Any, name: str) -> Any:
    """`x`, rows of float32, in ggml's bytes of a type."""
    fmt = quants.FORMATS[name]
    out = np.zeros((x.shape[0], x.shape[1] // fmt.block * fmt.nbytes), np.uint8)
    source, target = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data)
    if name == "Q8_K":  # of activations only, so it has no place in ggml_quantize_chunk
        _ggml().quantize_row_q8_K_ref(source, target, ctypes.c_int64(x.size))
    else:
        rows, columns = map(ctypes.c_int64, x.shape)
        start, weights = ctypes.c_int64(0), ctypes.c_void_p(None)
        _ggml().ggml_quantize_chunk(fmt.ggml_id, source, target, start, rows, columns, weights)
    return out


def rounded(x: Any, name: str) -> Any:
    """`x` in the bytes of the type that ggml's processor code makes before it multiplies."""
    fmt = quants.FORMATS[name]
    package = pytest.importorskip("llama_cpp")
    library = ctypes.CDLL(str(Path(package.__file__).parent / "lib" / "libggml-cpu.so"))
    out = np.zeros((x.shape[0], x.shape[1] // fmt.block * fmt.nbytes), np.uint8)
    source, target = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data)
    run = getattr(library, f"quantize_row_{_in_c(name)}")
    run(source, target, ctypes.c_int64(x.size))
    return out


def dequantize(stored: Any, name: str) -> Any:
    """The float32 that ggml reads in rows of bytes."""
    fmt = quants.FORMATS[name]
    out = np.zeros((stored.shape[0], stored.shape[1] // fmt.nbytes * fmt.block), np.float32)
    read = getattr(_ggml(), f"dequantize_row_{_in_c(name)}")
    read(
        ctypes.c_void_p(stored.ctypes.data),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_int64(out.size),
    )
    return out


def _in_c(name: str) -> str:
    """A type's name in C: small letters, but for the K."""
    return name.lower().replace("_k", "_K")
