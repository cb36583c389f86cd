"""The stacks' own modules, from their unpacked wheels: imported where that works, else the one class or function read out.

`EVENKEEL_STACKS` names the folder with the packages `vllm`, `sglang` and `vllm_ascend` (`make stacks` makes one). The packages'
own `__init__` files, which import a whole server, are passed over; what a module wants beyond the parts that are tested is
stood in for, by name, in the test.
"""

import ast
import importlib
import os
import sys
import types

import pytest

FOLDER = os.environ.get("EVENKEEL_STACKS")
NAMES = ("vllm", "sglang", "vllm_ascend")


def torch():
    """torch, or a skip that says what is missing."""
    if FOLDER is None:
        pytest.skip("EVENKEEL_STACKS is not set")
    return pytest.importorskip("torch")


def stand_in(name, **members):
    """Puts a module with these members where the import of `name` finds it."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        package = ".".join(parts[:depth])
        if package not in sys.modules:
            module = types.ModuleType(package)
            module.__path__ = [os.path.join(FOLDER, *parts[:depth])]
            sys.modules[package] = module
            if depth > 1:
                setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
    if len(parts) > 1:
        setattr(sys.modules[".".join(parts[:-1])], parts[-1], module)
    return module


def load(name):
    """The real module `name`, without the `__init__` of the packages around it."""
    stand_in(f"{name}._")
    del sys.modules[name], sys.modules[f"{name}._"]
    module = importlib.import_module(name)
    setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    return module


def take(name, *members, **around):
    """A module that cannot be imported, with some of it: functions, classes and methods (`Class.method`, here a function) from
    their own source, also what a module has under an `if`, functions without their decorators, and `around` as the other names
    that they use."""
    path = os.path.join(FOLDER, *name.split(".")) + ".py"
    with open(path) as file:
        tree = ast.parse(file.read(), path)
    wanted = []
    for member in members:
        inside = tree.body + [node for under in tree.body if isinstance(under, ast.If) for node in under.body]
        for part in member.split("."):
            (found,) = (node for node in inside if getattr(node, "name", None) == part)
            inside = found.body
        if isinstance(found, ast.FunctionDef):
            found.decorator_list = []
        wanted.append(found)
    module = stand_in(name, **around)
    future = ast.ImportFrom("__future__", [ast.alias("annotations")], 0)
    code = ast.fix_missing_locations(ast.Module([future, *wanted], []))
    exec(compile(code, path, "exec"), module.__dict__)
    return module


def forget(before):
    """Removes the stacks' modules that have come since `before`."""
    for name in set(sys.modules) - before:
        if name.split(".")[0] in NAMES:
            del sys.modules[name]
