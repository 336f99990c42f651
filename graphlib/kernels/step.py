"""What a program is made of: one kernel, its record, and how many pieces the work has."""

import struct
from dataclasses import dataclass

from yupana.graphlib.kernels.compiler import Kernel


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of a compiled program.

    Steps of one node run in order; a later one may read what an earlier one wrote.
    """

    kernel: Kernel
    record: tuple[int, ...]  # int64 words: addresses, shapes, byte strides, parameters
    chunks: int  # independent pieces of work; depends on shapes only, never on threads
    work_ns: float = 0.0  # predicted time on one thread; small steps are not shared
    scratch: int = 0  # bytes of scratch memory every thread needs


def float_word(value: float) -> int:
    """A float parameter as a record word (its 64 bits); kernels read it by `f64_words`."""
    word: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return word
