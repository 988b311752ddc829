"""Which names of TensorRT a source file uses: attributes of the module and of its objects, told by what we call them.

`builder.create_network` is taken for a name of `Builder` because in our code every variable, attribute or call named `builder` is
one.  A name of TensorRT behind any other word is reported as unknown, so that nothing escapes by being called otherwise.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import edgewam

ROOT = Path(edgewam.__file__).parent
# only who holds a loaded library can reach into it
SOURCES = sorted(path for path in ROOT.rglob("*.py") if "TensorRt" in path.read_text())
MODULE = ""
# last word of an expression -> class of TensorRT that it gives
WORDS = {
    "module": MODULE, "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "create_builder_config": "IBuilderConfig", "runtime": "Runtime", "engine": "ICudaEngine", "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig", "create_runtime_config": "IRuntimeConfig",
    "deserialize_cuda_engine": "ICudaEngine", "create_engine_inspector": "EngineInspector", "tensor": "ITensor",
    "get_error": "ParserError", "errors": "ParserError", "named": "ParserError", "e": "ParserError",
}  # fmt: skip
# names that ordinary objects have too: behind an unknown word they say nothing
COMMON = {"name", "shape", "dtype", "engine", "logger", "builder", "value"}


def used(tree: ast.AST) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """((class, name) that must exist, (expression, name) with a receiver that is not in WORDS).

    `getattr(x, "NAME", default)` asks for nothing; without a default it is as good as `x.NAME`.
    """
    found: set[tuple[str, str]] = set()
    other: set[tuple[str, str]] = set()
    for scope, aliases in _scopes(tree):
        for node in scope:
            for receiver, name in _accesses(node):
                owner = _owner(receiver, aliases)
                if owner is None:
                    other.add((ast.unparse(receiver), name))
                else:
                    found.add((owner, name))
    return found, other


def used_in(paths: Iterable[Path] = SOURCES) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """`used` of several files together."""
    pairs = [used(ast.parse(path.read_text())) for path in paths]
    return set().union(*(found for found, _ in pairs)), set().union(*(other for _, other in pairs))


def _scopes(tree: ast.AST) -> Iterator[tuple[list[ast.AST], dict[str, str]]]:
    """Every function on its own, and what is outside of functions: nodes, and names given to classes of the module."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for nodes in [*([*ast.walk(f)] for f in functions), [n for n in ast.walk(tree) if id(n) not in inside]]:
        aliases: dict[str, str] = {}
        for node in nodes:
            if isinstance(node, ast.Assign):
                for target, value in _pairs(node):
                    if isinstance(value, ast.Attribute) and _owner(value.value, {}) == MODULE:
                        aliases[target] = value.attr
        yield nodes, aliases


def _pairs(node: ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    target = node.targets[0]
    if isinstance(target, ast.Name):
        yield target.id, node.value
    elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
        yield from ((t.id, v) for t, v in zip(target.elts, node.value.elts, strict=True) if isinstance(t, ast.Name))


def _accesses(node: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    if isinstance(node, ast.Attribute):
        yield node.value, node.attr
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 2:
        name = node.args[1]
        if isinstance(name, ast.Constant):
            yield node.args[0], str(name.value)


def _owner(node: ast.expr, aliases: dict[str, str]) -> str | None:
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Subscript):
        node = node.value
    if isinstance(node, ast.Name):
        return aliases.get(node.id, WORDS.get(node.id))
    if isinstance(node, ast.Attribute):
        return node.attr if _owner(node.value, aliases) == MODULE else WORDS.get(node.attr)
    return None
