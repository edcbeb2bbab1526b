"""What no window reaches, and what no gradient fills, is not computed: values lose rows and columns at their far ends.

A pooling that leaves a rest reads only a leading box of its images, so that the convolution before it makes no more than that,
and so on upwards. Its gradient is zero beyond that box, so that the sums and the gradients of convolutions leave it out.

Invariant: what is left is computed from the same numbers as before. Zeros that a gradient has beyond its box are taken to be
zero whatever they would be multiplied with: an infinity in a place that no window reads does not reach a gradient.
"""

from __future__ import annotations

from typing import Any

from ..ops.core import Expression, Reduction, TensorSpec
from ..trace.graph import Graph, Node, Value
from .base import Rewriter
from .fold_constants import number_of
from .probe_identities import gives_zero

Box = tuple[int, ...]
"""How many leading elements along each dimension."""


def crop_to_what_is_read(graph: Graph) -> Graph:
    """Return the graph with values cropped to the leading boxes that all who read them are content with."""
    if not any(node.op.planes and _leaves_a_rest(node) for node in graph.nodes):
        return graph
    return _Cropping(graph).run()


class _Cropping:
    """The state of one run of the pass."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.rewriter = Rewriter(graph)
        self.filled: dict[Value, Box] = {}
        """The box that a value is zero beyond, where that is known."""
        self.kept: dict[Value, Box] = {}
        """The box to make of each value; it only grows."""
        self.has_grown = True

    def run(self) -> Graph:
        """Find the zeros from the first node to the last, then what is read from the last to the first, and rebuild."""
        self._find_zeros()
        for item in self.graph.inputs:
            self._keep(item.value, item.value.shape)
        for output in self.graph.outputs:
            self._keep(output.value, output.value.shape)
        waiting = self.graph.nodes[::-1]
        while self.has_grown:
            self.has_grown = False
            for node in waiting:
                self._ask(node)
            waiting = tuple([node for node in waiting if not self._is_whole(node)])
        if not waiting:
            return self.graph
        for node in self.graph.nodes:
            self._rebuild(node)
        return self.rewriter.finish()

    def _is_whole(self, node: Node) -> bool:
        return all(self.kept[value] == value.shape for value in (*node.inputs, *node.outputs))

    # --- zeros ----------------------------------------------------------------------------------------------------

    def _filled(self, value: Value) -> Box:
        return self.filled.get(value, value.shape)

    def _find_zeros(self) -> None:
        made_by = {value: node for node in self.graph.nodes for value in node.outputs}
        for node in self.graph.nodes:
            result, first = node.outputs[0], node.inputs[0] if node.inputs else None
            box: Box | None = None
            if node.op.planes and node.op.planes[-1] == "image" and first is not None:
                box = (*result.shape[:2], *_reach(node, self._filled(first)[2:]))
            elif any(value in self.filled for value in node.inputs) and _is_pointwise(node):
                numbers = tuple(
                    "0" if value in self.filled else None if (c := number_of(made_by.get(value))) is None else repr(c)
                    for value in node.inputs
                )
                dtypes = tuple(value.dtype for value in node.inputs)
                if gives_zero(node.op, node.params, numbers, dtypes):  # type: ignore[arg-type]
                    boxes = [self._aligned(v, self.filled[v], result) for v in node.inputs if v in self.filled]
                    box = tuple(map(max, zip(*boxes, strict=True)))
            if box is not None and box != result.shape:
                self.filled[result] = box

    @staticmethod
    def _aligned(value: Value, box: Box, result: Value) -> Box:
        """Return ``box`` of an operand in the dimensions of a pointwise result; all of what it is repeated along."""
        missing = len(result.shape) - len(box)
        extents = zip(box, value.shape, result.shape[missing:], strict=True)
        return (*result.shape[:missing], *(b if n == m else m for b, n, m in extents))

    # --- what is read ---------------------------------------------------------------------------------------------

    def _keep(self, value: Value, box: Box) -> None:
        before = self.kept.get(value)
        wider = box if before is None else tuple(map(max, zip(before, box, strict=True)))
        if wider != before:
            self.kept[value] = wider
            self.has_grown = True

    def _ask(self, node: Node) -> None:
        """Let the operands of a node keep what it reads, and its results what it cannot leave out."""
        is_read = any(value in self.kept for value in node.outputs)
        if is_read and _has_croppable_windows(node):
            self._ask_windows(node)
        elif is_read and _is_pointwise(node):
            self._ask_pointwise(node)
        else:
            for value in node.outputs:
                self._keep(value, value.shape)
            summed = dict(node.params)["dims"] if node.op.lowering == Reduction("sum") else ()
            for value in node.inputs:
                box = zip(self._filled(value), value.shape, strict=True)
                self._keep(value, tuple(b if d in summed else n for d, (b, n) in enumerate(box)))

    def _ask_pointwise(self, node: Node) -> None:
        """All that have an extent keep as much of it as the one that keeps most: nothing is cut out of a larger value."""
        (result,) = node.outputs
        values = (*node.inputs, result)
        extents = list(self.kept[result])
        skipped = [len(result.shape) - len(value.shape) for value in values]
        for value, skip in zip(values, skipped, strict=True):
            for d, n in enumerate(self.kept.get(value, ())):
                if value.shape[d] == result.shape[skip + d]:
                    extents[skip + d] = max(extents[skip + d], n)
        for value, skip in zip(values, skipped, strict=True):
            wanted = zip(value.shape, result.shape[skip:], extents[skip:], strict=True)
            self._keep(value, tuple(b if n == m else n for n, m, b in wanted))

    def _ask_windows(self, node: Node) -> None:
        """Windows that anyone reads or fills are kept, and of images what these reach."""
        planes = node.op.planes
        values = (*node.inputs, *node.outputs)
        images = [value for value, role in zip(values, planes, strict=True) if role == "image"]
        windows = [value for value, role in zip(values, planes, strict=True) if role == "windows"]
        count: Box = (1, 1)
        for value in windows:
            if value in self.kept:
                count = tuple(map(max, zip(count, self.kept[value][2:], strict=True)))
        if planes[-1] != "windows":
            filled: Box = self._filled(windows[0])[2:]
            if planes[-1] == "image":
                met = _meeting(node, self.kept[images[0]][2:])
                filled = tuple(map(min, zip(filled, met, strict=True)))
            count = tuple(map(max, zip(count, filled, strict=True)))
        for value in windows:
            self._keep(value, (*value.shape[:2], *count))
        for value in images:
            self._keep(value, (*value.shape[:2], *_reach(node, count)))
        for value, role in zip(values, planes, strict=True):
            if role == "kernel":
                self._keep(value, value.shape)

    def _rebuild(self, node: Node) -> None:
        if self._is_whole(node):
            self.rewriter.keep(node)
            return
        params = node.params
        if node.op.planes:
            params = tuple(sorted(self._fitting_params(node).items()))
        inputs = tuple(self.rewriter.value(value) for value in node.inputs)
        outputs = tuple(Value(TensorSpec(self.kept[value], value.dtype)) for value in node.outputs)
        self.rewriter.keep(Node(node.op, inputs, params, outputs, node.location, node.is_backward, node.is_recomputed))
        for old, new in zip(node.outputs, outputs, strict=True):
            self.rewriter.replace(old, new)

    def _fitting_params(self, node: Node) -> dict[str, Any]:
        """Return the parameters with a far border that makes as many windows as are kept; a negative one leaves out."""
        params = dict(node.params)
        roles = dict(zip(reversed(node.op.planes), reversed((*node.inputs, *node.outputs)), strict=True))
        size, count = self.kept[roles["image"]][2:], self.kept[roles["windows"]][2:]
        if "size" in params:
            params["size"] = size
        ends = [seen - n for seen, n in zip(_seen(node, count), size, strict=True)]
        top, _, left, _ = params["padding"]
        params["padding"] = (top, ends[0], left, ends[1])
        return params


def _sizes(node: Node, role: str) -> Box:
    """Return (height, width) of the operand or result whose planes are ``role``."""
    values = (*node.inputs, *node.outputs)
    return next(value.shape[2:] for value, its in zip(values, node.op.planes, strict=True) if its == role)


def _seen(node: Node, count: Box) -> Box:
    """Return how many rows and columns from the images' first ones on the first ``count`` windows see."""
    params = dict(node.params)
    kernel = params["kernel"] if "kernel" in params else _sizes(node, "kernel")
    dilation = params.get("dilation", (1, 1))
    walks = zip(count, params["stride"], dilation, kernel, params["padding"][::2], strict=True)
    return tuple((n - 1) * stride + d * (k - 1) + 1 - lo for n, stride, d, k, lo in walks)


def _reach(node: Node, count: Box) -> Box:
    """Return how many rows and columns of the images the first ``count`` windows reach."""
    return tuple(min(max(seen, 1), n) for seen, n in zip(_seen(node, count), _sizes(node, "image"), strict=True))


def _meeting(node: Node, size: Box) -> Box:
    """Return how many windows meet the first ``size`` rows and columns of the images."""
    params = dict(node.params)
    walks = zip(size, params["padding"][::2], params["stride"], _sizes(node, "windows"), strict=True)
    return tuple(min((n - 1 + lo) // stride + 1, most) for n, lo, stride, most in walks)


def _leaves_a_rest(node: Node) -> bool:
    return _reach(node, _sizes(node, "windows")) != _sizes(node, "image")


def _is_pointwise(node: Node) -> bool:
    return (
        node.op.elementwise
        and isinstance(node.op.lowering, Expression)
        and len(node.outputs) == 1
        and bool(node.inputs)
    )


def _has_croppable_windows(node: Node) -> bool:
    """Whether no number of the node depends on how wide the image is: positions in the plane do, numbers of taps do not."""
    return bool(node.op.planes) and (not node.op.has_positions or dict(node.params).get("taps", False))
