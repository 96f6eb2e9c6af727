"""`tiny` suppression in ONNX's standard operators: `models.tiny_suppression`, with the rule of `flyspeck.one_object`.

Only what is alive is compared: the candidates are sorted, and cut off where the batch's fullest image ends, and numbers are
reckoned of pairs that meet alone. So the pass costs what its boxes cost and not what the graph could hold. No matrix is
multiplied: a runtime that computes in bfloat16 would take that for the network's, and round the coordinates before it.
"""

from __future__ import annotations

from typing import Any

from flyspeck import one_object
from flyspeck.boxes import EPS
from flyspeck.models.tiny_suppression import MOST, ROUNDS, VOTERS

_FLOAT, _INT64 = 1, 7  # ONNX's numbers of the types
_END = 2**62
"""Of a slice that goes to the end."""


def tiny_suppression_form(op: Any) -> Any:
    """The function of the operator's arguments that builds it of `op`, onnxscript's opset 18."""

    def tiny_suppression(
        boxes: Any, scores: Any, kept: Any, labels: Any, threshold: float, limit: Any
    ) -> tuple[Any, Any]:
        return _Form(op).build(boxes, scores, kept, labels, threshold, limit)

    return tiny_suppression


class _Form:
    """Builds the operator of `op`; B images, n boxes and m others each, p pairs of them."""

    def __init__(self, op: Any) -> None:
        self.op = op

    def build(self, boxes: Any, scores: Any, kept: Any, labels: Any, threshold: float, limit: Any) -> tuple[Any, Any]:
        """As `models.tiny_suppression.tiny_suppression`."""
        op, one, integers = self.op, self.one, self.integers
        total = op.Shape(kept, start=1, end=2)
        limit = integers(limit) if isinstance(limit, int) else op.Reshape(limit, integers(1))
        values, places, count = self.sorted_alive(kept, op.Min(limit, total))
        count = op.Min(count, integers(MOST))
        where, best = self.first(places, count), self.first(values, count)
        mine, classes = self.rows(boxes, where), op.GatherElements(labels, where, axis=1)
        alive = op.Cast(op.Greater(best, one(0.0)), to=_FLOAT)
        whole = op.Reshape(op.Greater(self.settled(mine, classes, alive, count), one(0.0)), op.Shape(best))
        candidates = op.Mul(scores, op.Cast(op.Greater(scores, one(threshold)), to=_FLOAT))
        votes, voters, voting = self.sorted_alive(candidates, op.Min(integers(VOTERS), total))
        votes, voters = self.first(votes, voting), self.first(voters, voting)
        theirs = op.GatherElements(labels, voters, axis=1)
        moved = op.Reshape(self.placed(mine, classes, self.rows(boxes, voters), theirs, votes), op.Shape(mine))
        moved = op.Where(op.Unsqueeze(whole, integers(2)), moved, mine)
        after = op.Where(whole, best, op.Mul(best, one(one_object.DUPLICATE)))
        after = op.Mul(after, op.Cast(op.Greater(after, one(threshold)), to=_FLOAT))
        left = op.Concat(after, op.Slice(values, count, integers(_END), integers(1)), axis=1)
        nothing = op.Expand(one(0.0), op.Shape(kept))
        return (
            op.ScatterElements(boxes, self.spread(where), moved, axis=1),
            op.ScatterElements(nothing, places, left, axis=1),
        )

    def settled(self, boxes: Any, labels: Any, alive: Any, count: Any) -> Any:
        """(B * n) of 1 and 0: which of the `count` boxes an image, best first, are no duplicates of a better one."""
        op, one = self.op, self.one
        order = op.Range(op.Constant(value_int=0), op.Squeeze(count, self.integers(0)), op.Constant(value_int=1))
        better = op.Less(op.Unsqueeze(order, self.integers(1)), op.Unsqueeze(order, self.integers(0)))
        i, j = self.pairs(op.And(self.meeting(boxes, labels, boxes, labels), better))
        places, alive = self.flat(boxes, 4), self.flat(alive)
        shared, area, other = self.shared_and_areas(op.Gather(places, i, axis=0), op.Gather(places, j, axis=0))
        smaller = op.Min(area, other)
        slope = (1 - one_object.LOWEST) / (one_object.LARGE - one_object.TINY)
        rise = op.Mul(op.Sub(op.Sqrt(smaller), one(one_object.TINY)), one(slope))
        bound = op.Add(self.between(rise, 0.0, one_object.NONE - one_object.LOWEST), one(one_object.LOWEST))
        same = self.no_dummy(op.Cast(op.Greater(shared, op.Mul(bound, smaller)), to=_FLOAT))
        stays = alive
        for _ in range(ROUNDS):
            beaten = op.Min(self.summed(op.Mul(same, op.Gather(stays, i, axis=0)), j, alive), one(1.0))
            stays = op.Mul(alive, op.Sub(one(1.0), beaten))
        return stays

    def placed(self, boxes: Any, labels: Any, voters: Any, voter_labels: Any, scores: Any) -> Any:
        """(B * n, 4): where the voters (B, m, 4) put each box."""
        op, one = self.op, self.one
        i, j = self.pairs(self.meeting(boxes, labels, voters, voter_labels))
        places = self.flat(boxes, 4)
        a, b = op.Gather(places, i, axis=0), op.Gather(self.flat(voters, 4), j, axis=0)
        shared, area, other = self.shared_and_areas(a, b)
        overlap = op.Div(shared, op.Max(op.Sub(op.Add(area, other), shared), one(EPS)))
        span = one_object.VOTE_FULL - one_object.VOTE_FROM
        vote = self.between(op.Div(op.Sub(overlap, one(one_object.VOTE_FROM)), one(span)), 0.0, 1.0)
        weight = self.no_dummy(op.Mul(vote, op.Gather(self.flat(scores), j, axis=0)))
        like = self.column(places, 0)
        total = op.Max(self.summed(weight, i, like), one(EPS))
        moves = []
        for k in range(4):
            apart = op.Mul(weight, op.Sub(self.column(b, k), self.column(a, k)))
            moves.append(op.Unsqueeze(op.Div(self.summed(apart, i, like), total), self.integers(1)))
        return op.Add(places, op.Concat(*moves, axis=1))

    def sorted_alive(self, scores: Any, most: Any) -> tuple[Any, Any, Any]:
        """The best `most` scores (B, k) and their places (B, k), and how many columns hold one above 0: at least 1."""
        op = self.op
        values, places = op.TopK(scores, most, axis=1)
        alive = op.ReduceSum(op.Cast(op.Greater(values, self.one(0.0)), to=_INT64), self.integers(1), keepdims=0)
        count = op.Max(op.ReduceMax(alive, keepdims=0), op.Constant(value_int=1))
        return values, places, op.Reshape(count, self.integers(1))

    def meeting(self, a: Any, labels: Any, b: Any, others: Any) -> Any:
        """(B, n, m) bool: which boxes (B, n, 4) and (B, m, 4) overlap, within a class."""
        op = self.op
        meet = op.Equal(op.Unsqueeze(labels, self.integers(2)), op.Unsqueeze(others, self.integers(1)))
        for low, high in ((0, 2), (1, 3)):
            meet = op.And(meet, op.Less(self.side(a, low, 2), self.side(b, high, 1)))
            meet = op.And(meet, op.Less(self.side(b, low, 1), self.side(a, high, 2)))
        return meet

    def pairs(self, meet: Any) -> tuple[Any, Any]:
        """Rows of (B * n) and of (B * m) that meet, (p,) each. The first pair is a dummy, (0, 0): no tensor is empty."""
        op, integers = self.op, self.integers
        shape, found = op.Shape(meet), op.NonZero(meet)
        image, i, j = (op.Gather(found, op.Constant(value_int=k), axis=0) for k in range(3))
        rows, columns = (op.Slice(shape, integers(k), integers(k + 1)) for k in (1, 2))
        left, right = op.Add(op.Mul(image, rows), i), op.Add(op.Mul(image, columns), j)
        return op.Concat(integers(0), left, axis=0), op.Concat(integers(0), right, axis=0)

    def no_dummy(self, values: Any) -> Any:
        """Values (p,), that of the first pair 0."""
        op, integers = self.op, self.integers
        rest = op.Slice(values, integers(1), integers(_END), integers(0))
        return op.Concat(op.Constant(value_floats=[0.0]), rest, axis=0)

    def shared_and_areas(self, a: Any, b: Any) -> tuple[Any, Any, Any]:
        """(p,) square pixels that boxes (p, 4) share pair by pair, and the areas of either."""
        op = self.op
        spans, areas = [], ([], [])
        for low, high in ((0, 2), (1, 3)):
            ends = op.Min(self.column(a, high), self.column(b, high))
            spans.append(op.Max(op.Sub(ends, op.Max(self.column(a, low), self.column(b, low))), self.one(0.0)))
            for boxes, lengths in ((a, areas[0]), (b, areas[1])):
                lengths.append(op.Max(op.Sub(self.column(boxes, high), self.column(boxes, low)), self.one(0.0)))
        return op.Mul(*spans), op.Mul(*areas[0]), op.Mul(*areas[1])

    def summed(self, values: Any, to: Any, like: Any) -> Any:
        """Values (p,) added up in the rows `to (p,)` of a column as long as `like`."""
        nothing = self.op.Expand(self.one(0.0), self.op.Shape(like))
        return self.op.ScatterElements(nothing, to, values, axis=0, reduction="add")

    def between(self, x: Any, low: float, high: float) -> Any:
        return self.op.Min(self.op.Max(x, self.one(low)), self.one(high))

    def first(self, values: Any, count: Any) -> Any:
        return self.op.Slice(values, self.integers(0), count, self.integers(1))

    def rows(self, values: Any, places: Any) -> Any:
        """Rows (B, k) of boxes (B, M, 4)."""
        return self.op.GatherElements(values, self.spread(places), axis=1)

    def spread(self, places: Any) -> Any:
        """(B, k) to (B, k, 4)."""
        shape = self.op.Concat(self.op.Shape(places), self.integers(4), axis=0)
        return self.op.Expand(self.op.Unsqueeze(places, self.integers(2)), shape)

    def side(self, boxes: Any, k: int, axis: int) -> Any:
        return self.op.Unsqueeze(self.op.Gather(boxes, self.op.Constant(value_int=k), axis=2), self.integers(axis))

    def column(self, boxes: Any, k: int) -> Any:
        return self.op.Gather(boxes, self.op.Constant(value_int=k), axis=1)

    def flat(self, values: Any, width: int | None = None) -> Any:
        return self.op.Reshape(values, self.integers(-1) if width is None else self.integers(-1, width))

    def one(self, value: float) -> Any:
        return self.op.Constant(value_float=value)

    def integers(self, *values: int) -> Any:
        return self.op.Constant(value_ints=list(values))
