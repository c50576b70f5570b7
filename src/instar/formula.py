"""Arithmetic formulas on cards ("4 * H * K * V"), evaluated by a whitelist and never by `eval`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import cache

from instar.errors import FormulaError

_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,  # of floats: powers of powers overflow, where integers would fill the memory, and none is complex
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "ceil": math.ceil,
    "floor": math.floor,
    "log2": math.log2,
    "sqrt": math.sqrt,
}
_LIMIT = 500  # characters; a card is untrusted text, and nesting depth is bounded by length


@cache
def _parse(text: str) -> ast.expr:
    if len(text) > _LIMIT:
        raise FormulaError(f"A formula has at most {_LIMIT} characters; received {len(text)}.")
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise FormulaError(f"'{text}' is not a formula: {error.msg}.") from error
    _check(tree, text)
    return tree


def _check(node: ast.expr, text: str) -> None:
    """Refuse everything that is not on the whitelist, before anything is computed."""
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float()) | ast.Name():
            return
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _check(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            _check(left, text)
            return _check(right, text)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            for argument in args:
                _check(argument, text)
            return
    raise FormulaError(f"'{text}' uses {type(node).__name__}; only arithmetic on names and numbers is allowed.")


def names(text: str) -> set[str]:
    """The variables of a formula."""
    return {n.id for n in ast.walk(_parse(text)) if isinstance(n, ast.Name)} - set(_FUNCTIONS)


def evaluate(text: str, variables: Mapping[str, float]) -> float:
    """The value of a formula. Raises FormulaError for anything but numbers, known names, + - * / // % ** and a few functions."""

    def visit(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=value):
                return value  # type: ignore[return-value]  # a number: `_parse` saw to it
            case ast.Name(id=name) if name in variables:
                return variables[name]
            case ast.Name(id=name):
                raise FormulaError(f"'{text}' uses '{name}'; known are {', '.join(sorted(variables))}.")
            case ast.UnaryOp(operand=operand):
                return -visit(operand)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = visit(left), visit(right)
                if isinstance(op, ast.Pow) and abs(b) > 8:
                    raise FormulaError(f"'{text}' has an exponent beyond 8.")
                return _BINARY[type(op)](a, b)
            case ast.Call(func=ast.Name(id=name), args=args):
                return _FUNCTIONS[name](*map(visit, args))
        raise AssertionError(ast.dump(node))  # `_parse` lets nothing else through

    try:
        return visit(_parse(text))
    except (ArithmeticError, ValueError, TypeError) as error:
        raise FormulaError(f"'{text}' cannot be computed: {error}.") from error
