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

__version__ = "0.1.0"
TYPE_CHECKING = False  # True for type checkers, as typing's, which takes longer to load than this

if TYPE_CHECKING:  # for editors and type checkers; at run time __getattr__ does the same
    from yupana.api import *
else:

    def __getattr__(name: str) -> object:
        """A name of `yupana.api`, which is loaded when the first one is asked for.

        With it come numpy, numba and all ops, half a second of work. The command line imports
        this package first, and should answer `--help` and Ctrl-C before that.
        """
        import importlib

        if not name.startswith("__") or name == "__all__":
            api = importlib.import_module("yupana.api")
            known = {name: getattr(api, name) for name in api.__all__}
            globals().update(known, __all__=api.__all__)
            if name in globals():
                return globals()[name]
        raise AttributeError(f"module 'yupana' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return [*__getattr__("__all__"), "__version__"]
