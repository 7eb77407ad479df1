"""What may stand behind ``$`` in a stranger's config: read as Python would evaluate it, and never evaluated.

An expression may hold references, a few attributes, arithmetic, comparisons, conditions, and calls of a few functions
and methods. Everything else that Python has is refused, whatever it does.

>>> expression_problem("$len(@data) // 2 + @data[0]")
>>> expression_problem("$@network.hub")
"reaches for the attribute 'hub', which bundles do not need"
"""

from __future__ import annotations

import ast
from typing import Any

__all__ = ["LONGEST", "expression_problem"]

LONGEST = 1000
"""Characters of an expression or a macro; MONAI's patterns take the square of that."""
_METHODS = frozenset(
    {"begin", "buffers", "close", "eval", "get", "items", "keys", "named_parameters", "parameters", "run", "share",
     "state_dict", "train", "values"}
)  # fmt: skip
"""Methods that an expression may call, on whatever; none of them runs code or opens a file in an allowed class."""
_ATTRIBUTES = frozenset(
    {"amp", "autocast_dtype", "batch_size", "datalist", "device", "generator", "image_size", "in_channels", "manifest",
     "network", "normalization", "options", "rank", "source", "threshold", "type", "validation_part", "world_size"}
)  # fmt: skip
"""Attributes that an expression may read: those of our own objects that bundles need.

Not every one that is public: from ``DataLoader.multiprocessing_context`` it is four steps to ``os.system``.
"""
_FUNCTIONS = frozenset({"float", "int", "len", "max", "min", "round"})
_SYNTAX = (
    ast.Expression, ast.Constant, ast.Load, ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BinOp, ast.Add, ast.Sub,
    ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.cmpop, ast.IfExp, ast.List,
    ast.Tuple, ast.Dict, ast.keyword,
)  # fmt: skip
_REFERENCES = "__local_refs"
"""The name under which MONAI hands an expression the objects that it refers to."""


class _AnyReference(dict[str, Any]):
    """Knows every id, so that MONAI itself writes an expression as it would be evaluated."""

    def __contains__(self, _key: object) -> bool:
        return True


def expression_problem(text: str) -> str | None:
    """Why Python must not evaluate an expression; None where it may.

    Args:
        text: as it stands in a config, with its ``$``.
    """
    from monai.bundle import ReferenceResolver

    if len(text) > LONGEST:
        return f"is longer than {LONGEST} characters"
    try:
        tree = ast.parse(ReferenceResolver.update_refs_pattern(text, _AnyReference())[1:], mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "is an import, or no expression"
    nodes = list(ast.walk(tree))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call) and _may_be_called(node.func)}
    indexed = {id(node.value) for node in nodes if isinstance(node, ast.Subscript) and _is_index(node.slice)}
    for node in nodes:
        if isinstance(node, ast.Call):
            if id(node.func) not in called:
                return "calls what is not one of MONAI's methods that bundles need"
        elif isinstance(node, ast.Name):
            if not (id(node) in called or (node.id == _REFERENCES and id(node) in indexed)):
                return f"uses the name '{node.id}'"
        elif isinstance(node, ast.Attribute):
            if node.attr not in _ATTRIBUTES and id(node) not in called:
                return f"reaches for the attribute '{node.attr}', which bundles do not need"
        elif isinstance(node, ast.Subscript):
            if id(node.value) not in indexed:
                return "takes an item by something other than a constant"
        elif not isinstance(node, _SYNTAX):
            return f"holds what bundles do not need ({type(node).__name__})"
    return None


def _may_be_called(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in _FUNCTIONS
    return isinstance(function, ast.Attribute) and function.attr in _METHODS


def _is_index(index: ast.expr) -> bool:
    return isinstance(index, ast.Constant) and isinstance(index.value, (str, int))
