"""The engine: tensors recorded lazily, differentiated, planned, compiled, run.

Import it as ``yupana.graphlib``. Python's standard library has a module of the same name,
and anything started from the repository's root finds this folder first; when that happens
this file hands the standard module over and steps aside.
"""

if __name__ == "graphlib":
    import importlib.machinery
    import importlib.util
    import sys
    import sysconfig

    _stdlib = sysconfig.get_path("stdlib")
    _spec = importlib.machinery.PathFinder.find_spec("graphlib", [_stdlib])
    if _spec is None or _spec.loader is None:
        raise ImportError(
            f"graphlib: the standard library's module is missing: looked in {_stdlib}. "
            "For the engine import yupana.graphlib.",
            name="graphlib",
        )
    # The import system returns whatever stands in sys.modules when this file ends.
    sys.modules["graphlib"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["graphlib"])
