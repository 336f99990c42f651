"""Every op, and the plain functions composed of them, by name: `ops.rms_norm(x)`.

A new op is one block in one file of this folder; nothing here changes.
"""

import importlib
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING

from yupana.graphlib.op import Op
from yupana.graphlib.tensor import Tensor

if TYPE_CHECKING:  # for editors and type checkers; at run time the loop below does the same
    from yupana.graphlib.ops.activation import *
    from yupana.graphlib.ops.arithmetic import *
    from yupana.graphlib.ops.arrange import *
    from yupana.graphlib.ops.attention import *
    from yupana.graphlib.ops.attention_back import *
    from yupana.graphlib.ops.attention_cells import *
    from yupana.graphlib.ops.clip import *
    from yupana.graphlib.ops.columns import *
    from yupana.graphlib.ops.convolution import *
    from yupana.graphlib.ops.copies import *
    from yupana.graphlib.ops.depthwise import *
    from yupana.graphlib.ops.experts import *
    from yupana.graphlib.ops.gates import *
    from yupana.graphlib.ops.gaussian import *
    from yupana.graphlib.ops.glu import *
    from yupana.graphlib.ops.legacy import *
    from yupana.graphlib.ops.linear_loss import *
    from yupana.graphlib.ops.loss import *
    from yupana.graphlib.ops.masks import *
    from yupana.graphlib.ops.matmul import *
    from yupana.graphlib.ops.norm import *
    from yupana.graphlib.ops.normalise import *
    from yupana.graphlib.ops.optimise import *
    from yupana.graphlib.ops.pooling import *
    from yupana.graphlib.ops.reduction import *
    from yupana.graphlib.ops.reflect import *
    from yupana.graphlib.ops.regions import *
    from yupana.graphlib.ops.resize import *
    from yupana.graphlib.ops.rope import *
    from yupana.graphlib.ops.rope_multi import *
    from yupana.graphlib.ops.rounding import *
    from yupana.graphlib.ops.rows import *
    from yupana.graphlib.ops.scan import *
    from yupana.graphlib.ops.scatter import *
    from yupana.graphlib.ops.slices import *
    from yupana.graphlib.ops.softmax import *
    from yupana.graphlib.ops.sort import *
    from yupana.graphlib.ops.training import *
    from yupana.graphlib.ops.unary import *
    from yupana.graphlib.ops.views import *
    from yupana.graphlib.ops.vision import *

for _path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    _module = importlib.import_module(f"{__name__}.{_path.stem}")
    for _name, _value in vars(_module).items():
        if _value.__class__ not in (Op, FunctionType) or _name.startswith("_"):
            continue
        _returns = (
            _value.__annotations__.get("return") if _value.__class__ is FunctionType else Tensor
        )
        if _value.__module__ == _module.__name__ and _returns in (Tensor, "Tensor"):
            globals()[_name] = _value
del _path, _module, _name, _value, _returns
