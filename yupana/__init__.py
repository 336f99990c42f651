"""Yupana: lazy computation graphs with planned memory, to train small language models on a CPU.

>>> import yupana as yp
>>> w = yp.Context().param((3,), name="w").set([1.0, 2.0, 3.0])
>>> loss = (w * w).sum()
>>> graph = yp.Graph(loss)
>>> grads = graph.backward(loss)
>>> graph.compile().run()
>>> grads[w].numpy()
array([2., 4., 6.], dtype=float32)
"""

from yupana import custom
from yupana.graphlib import errors, ops
from yupana.graphlib.autograd import Gradients, gradients
from yupana.graphlib.budget import MemoryBudget
from yupana.graphlib.check import check_op
from yupana.graphlib.config import config
from yupana.graphlib.context import Context, tensor
from yupana.graphlib.dtypes import Dtype, bf16, f16, f32, f64, i32
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

__version__ = "0.1.0"

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
    "i32",
    "load",
    "load_tokenizer",
    "op",
    "ops",
    "tensor",
]
