"""Evaluate expressions of the language at the points of a frame, one 1-D vector per expression.

A branch of a conditional is evaluated only at the points that take it, so what the other branch
would give there (NaN, infinities) reaches neither values nor gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attndsl.syntax import ast
from tests.oracle import functions
from tests.oracle.scopes import Closure, Frame, Scope


@dataclass(eq=False)
class Evaluator:
    """Everything that a call fixes: tensors, scalars, sizes and dimensions, the grid, and what
    selects have chosen."""

    query: Tensor
    tensors: dict[str, Tensor]
    numbers: dict[str, bool | int | float]
    grid: ast.Grid | None
    grid_scope: Scope | None = None
    choices: dict[str, Callable[[Frame], Tensor]] = field(default_factory=dict)

    def evaluate(self, e: ast.Expression, scope: Scope, frame: Frame) -> Tensor:
        """The value of `e`: float64, int64 or bool, [len(frame)]."""
        match e:
            case ast.Number(value=value) | ast.Boolean(value=value):
                return fill(value, frame)
            case ast.Name(name=name):
                return self.name(name, scope, frame)
            case ast.Unary():
                return self.unary(e, scope, frame)
            case ast.Binary():
                return self.binary(e, scope, frame)
            case ast.Comparison():
                return self.comparison(e, scope, frame)
            case ast.Conditional():
                return self.conditional(e, scope, frame)
            case ast.Call():
                return self.call(e, scope, frame)
            case ast.Coordinate():
                return self.coordinate(e, frame)
            case ast.Lookup():
                return self.lookup(e, scope, frame)
        raise AssertionError(f"no meaning for {type(e).__name__}")

    def name(self, name: str, scope: Scope, frame: Frame) -> Tensor:
        if name in scope.closures:
            return self.closure(scope.closures[name], frame)
        if scope.inside_attention and name in self.choices:
            return self.choices[name](frame)
        if scope.inside_attention and name in self.numbers:
            return fill(self.numbers[name], frame)
        if name in scope.module.definitions:
            define, module = scope.module.definitions[name]
            assert not define.parameters
            return self.evaluate(define.value, Scope(module), frame)
        if name in functions.CONSTANTS:
            return fill(functions.CONSTANTS[name], frame)
        if name in frame:
            return frame[name]
        if name in ("B", "H", "Hk", "G", "Nq", "Nk", "D"):
            return fill(self.numbers[name], frame)
        raise AssertionError(f"no value for {name}")

    def closure(self, closure: Closure, frame: Frame) -> Tensor:
        if closure.score is not None:
            frame = frame.with_score(closure.score)
        return self.evaluate(closure.expression, closure.scope, frame)

    def unary(self, e: ast.Unary, scope: Scope, frame: Frame) -> Tensor:
        value = self.evaluate(e.operand, scope, frame)
        if e.operator == "not":
            return ~value
        return -value if e.operator == "-" else value

    def binary(self, e: ast.Binary, scope: Scope, frame: Frame) -> Tensor:
        left = self.evaluate(e.left, scope, frame)
        right = self.evaluate(e.right, scope, frame)
        match e.operator:
            case "and":
                return left & right
            case "or":
                return left | right
            case "//":
                return functions.floor_divide(left, right)
            case "%":
                return functions.modulo(left, right)
            case "/":
                return functions.as_float(left) / functions.as_float(right)
            case "**":
                exponent = e.right.value if isinstance(e.right, ast.Number) else None
                literal = exponent if isinstance(exponent, int) else None
                return functions.power(left, right, literal)
        left, right = functions.join(left, right)
        match e.operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
        raise AssertionError(f"no operator {e.operator}")

    def comparison(self, e: ast.Comparison, scope: Scope, frame: Frame) -> Tensor:
        values = [self.evaluate(operand, scope, frame) for operand in e.operands]
        result = torch.ones(len(frame), dtype=torch.bool)
        for operator, left, right in zip(e.operators, values, values[1:], strict=False):
            result = result & functions.compare(operator, left, right)
        return result

    def conditional(self, e: ast.Conditional, scope: Scope, frame: Frame) -> Tensor:
        condition = self.evaluate(e.condition, scope, frame)
        taken, others = condition.nonzero()[:, 0], (~condition).nonzero()[:, 0]
        then = self.evaluate(e.then, scope, frame.at(taken))
        otherwise = self.evaluate(e.otherwise, scope, frame.at(others))
        if not functions.is_bool(then):
            then, otherwise = functions.join(then, otherwise)
        result = torch.zeros(len(frame), dtype=then.dtype)
        return result.index_put((taken,), then).index_put((others,), otherwise)

    def call(self, e: ast.Call, scope: Scope, frame: Frame) -> Tensor:
        name = e.function.name
        if name in scope.module.definitions:
            define, module = scope.module.definitions[name]
            inner = Scope(module)
            for parameter, argument in zip(define.parameters, e.arguments, strict=True):
                inner = inner.with_closure(parameter.name, Closure(argument, scope))
            return self.evaluate(define.value, inner, frame)
        if name == "dot":
            return self.dot(e, scope, frame)
        return functions.call(name, [self.evaluate(a, scope, frame) for a in e.arguments])

    def dot(self, e: ast.Call, scope: Scope, frame: Frame) -> Tensor:
        query, table = e.arguments
        assert isinstance(query, ast.Name) and query.name == "query"
        assert isinstance(table, ast.Lookup)
        rows = self.query[frame["b"], frame["h"], frame["row"]]
        return (rows * self.lookup(table, scope, frame)).sum(-1)

    def lookup(self, e: ast.Lookup, scope: Scope, frame: Frame) -> Tensor:
        """Elements of a tensor (rows, where the last dimension has no index); 0 out of range."""
        tensor = self.tensors[e.tensor.name]
        indices = [self.evaluate(index, scope, frame) for index in e.indices]
        inside = torch.ones(len(frame), dtype=torch.bool)
        for index, size in zip(indices, tensor.shape, strict=False):
            inside = inside & (index >= 0) & (index < size)
        points = inside.nonzero()[:, 0]
        found = tensor[tuple(index[points] for index in indices)]
        empty = torch.zeros((len(frame), *found.shape[1:]), dtype=found.dtype)
        return empty.index_put((points,), found)

    def coordinate(self, e: ast.Coordinate, frame: Frame) -> Tensor:
        """Floor arithmetic from the last axis on; the first axis is not reduced."""
        assert self.grid is not None and self.grid_scope is not None
        rest = frame[e.base.name]
        if self.grid.start is not None:
            rest = rest - self.evaluate(self.grid.start, self.grid_scope, frame)
        for position, (axis, extent) in reversed(list(enumerate(self.grid.axes))):
            size = self.evaluate(extent, self.grid_scope, frame)
            if axis.name == e.axis.name:
                return rest if position == 0 else functions.modulo(rest, size)
            rest = functions.floor_divide(rest, size)
        raise AssertionError(f"no axis {e.axis.name}")


def fill(value: bool | int | float, frame: Frame) -> Tensor:
    dtype = {bool: torch.bool, int: torch.int64, float: torch.float64}[type(value)]
    return torch.full((len(frame),), value, dtype=dtype)
