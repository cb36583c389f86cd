"""The stacks' own modules, from their unpacked wheels.

Modules that can be imported are imported. Of all others, one class or function runs from its source.
`EVENKEEL_STACKS` names the folder with the packages `vllm`, `sglang` and `vllm_ascend` (`make stacks` makes
one). The packages' own `__init__` files import a whole server and are skipped. The tests provide stand-ins,
by name, for further imports of a module.
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
    """Returns torch. Skips with a reason if it is missing."""
    if FOLDER is None:
        pytest.skip("no modules of the stacks (EVENKEEL_STACKS is not set)")
    return pytest.importorskip("torch", reason="no torch")


def stand_in(name, **members):
    """Registers a module with these members under `name`."""
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
    """Returns the real module `name`, without the `__init__` of its packages."""
    stand_in(f"{name}._")
    del sys.modules[name], sys.modules[f"{name}._"]
    module = importlib.import_module(name)
    setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    return module


def take(name, *members, **around):
    """Returns a part of a module that cannot be imported.

    `members` are functions, classes and methods (`Class.method`, here a function). They run from their
    source, also those under an `if`. Functions lose their decorators. `around` are the other names that they
    use.
    """
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
    """Removes the stacks' modules that were imported since `before`."""
    for name in set(sys.modules) - before:
        if name.split(".")[0] in NAMES:
            del sys.modules[name]
