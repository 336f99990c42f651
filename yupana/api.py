"""The names that `import yupana as yp` gives; `yupana/__init__.py` loads them at first use."""

from yupana import custom
from yupana.graphlib import errors, ops
from yupana.graphlib.autograd import Gradients, gradients
from yupana.graphlib.budget import MemoryBudget
from yupana.graphlib.check import check_op
from yupana.graphlib.config import config
from yupana.graphlib.context import Context, tensor
from yupana.graphlib.dtypes import Dtype, bf16, f16, f32, f64, i8, i16, i32
from yupana.graphlib.errors import YupanaError
from yupana.graphlib.graph import Graph
from yupana.graphlib.memory import Plan
from yupana.graphlib.op import REGISTRY, Op, op
from yupana.graphlib.program import Program
from yupana.graphlib.tensor import Tensor
from yupana.models.language_model import LanguageModel, load
from yupana.models.sampling import Sampling
from yupana.models.session import Session
from yupana.models.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "REGISTRY",
    "Context",
    "Dtype",
    "Gradients",
    "Graph",
    "LanguageModel",
    "MemoryBudget",
    "Op",
    "Plan",
    "Program",
    "Sampling",
    "Session",
    "Tensor",
    "Tokenizer",
    "YupanaError",
    "bf16",
    "check_op",
    "config",
    "custom",
    "errors",
    "f16",
    "f32",
    "f64",
    "gradients",
    "i8",
    "i16",
    "i32",
    "load",
    "load_tokenizer",
    "op",
    "ops",
    "tensor",
]
