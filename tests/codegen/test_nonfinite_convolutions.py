"""A NaN or an infinity in a convolution spreads as far as the sums that it belongs to, and no further."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import pequegrad as pg
import pequegrad.nn.functional as F

torch = pytest.importorskip("torch")

# N, C, H, W, O, (KH, KW), stride, padding, dilation, groups
GEOMETRIES = {
    "plain": (2, 2, 7, 9, 3, (3, 3), (1, 1), (0, 0), (1, 1), 1),
    "padded": (3, 1, 6, 5, 5, (3, 2), (1, 1), (1, 1), (1, 1), 1),
    "strided": (2, 3, 8, 9, 4, (3, 3), (2, 2), (1, 1), (1, 1), 1),
    "stride leaves a rest": (2, 1, 8, 10, 2, (2, 2), (3, 3), (0, 1), (1, 1), 1),
    "stride beyond the kernel": (2, 2, 9, 7, 3, (1, 1), (2, 3), (0, 0), (1, 1), 1),
    "dilated": (2, 2, 9, 9, 3, (3, 3), (1, 1), (2, 2), (2, 2), 1),
    "dilated and strided": (1, 2, 11, 10, 3, (3, 2), (2, 1), (1, 2), (1, 3), 1),
    "groups": (2, 4, 6, 7, 6, (3, 3), (1, 1), (1, 1), (1, 1), 2),
    "depthwise": (2, 3, 7, 7, 3, (3, 3), (2, 2), (1, 1), (1, 1), 3),
    "pointwise": (2, 5, 6, 5, 7, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "wide": (17, 1, 5, 40, 2, (5, 3), (1, 1), (4, 2), (1, 1), 1),
}


def arrays(geometry, dtype):
    n, c, h, w, o, kernel, stride, padding, dilation, groups = geometry
    sizes = zip((h, w), kernel, stride, padding, dilation)
    out = tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in sizes)
    rng = np.random.default_rng(3)
    # No zeros and no cancelling: every product with an infinity is one, and sums of them keep their sign.
    shapes = ((n, c, h, w), (o, c // groups, *kernel), (n, o, *out))
    return [(rng.random(shape) + 0.5).astype(dtype) for shape in shapes]


def spots(shape):
    """Corners, the middle and the last element of a middle row: where borders and gaps between rows begin."""
    n, c, h, w = shape
    for i, j in itertools.product(sorted({0, h // 2, h - 1}), sorted({0, w // 2, w - 1})):
        yield (n - 1, c // 2, i, j)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, np.float32) for name in GEOMETRIES), ("padded", np.float64), ("groups", np.float64)]
)
def test_nonfinite_elements_spread_as_in_torch(name, dtype):
    geometry = GEOMETRIES[name]
    stride, padding, dilation, groups = geometry[6:]

    def step(x, w, dy):
        y = F.conv2d(x, w, None, stride, padding, dilation, groups)
        (y * dy).sum().backward()
        return y, x.grad, w.grad

    def reference(x, w, dy):
        # In float64 torch multiplies the zeros of the padding as the formula says; in float32 it depends on the machine.
        x, w, dy = (torch.tensor(a, dtype=torch.float64) for a in (x, w, dy))
        how = (stride, padding, dilation, groups)
        grads = torch.ops.aten.convolution_backward(
            dy, x, w, None, stride, padding, dilation, False, (0, 0), groups, (True, True, False)
        )
        return (torch.nn.functional.conv2d(x, w, None, *how), *grads[:2])

    with pg.config(quiet=True):
        compiled = pg.compile(step, strict=True)
        wrong = []
        clean = arrays(geometry, dtype)
        for which, value in itertools.product(range(3), (np.inf, -np.inf, np.nan)):
            for spot in spots(clean[which].shape):
                given = [array.copy() for array in clean]
                given[which][spot] = value
                x, w, dy = (pg.tensor(array) for array in given)
                got = compiled(x.requires_grad_(), w.requires_grad_(), dy)
                for part, mine, theirs in zip(("y", "dx", "dw"), got, reference(*given)):
                    if not same_where_not_finite(mine.numpy(), theirs.numpy()):
                        wrong.append(f"{part} for {value} in {('x', 'w', 'dy')[which]}{list(spot)}")
    assert wrong == []


def same_where_not_finite(mine, theirs):
    finite = np.isfinite(theirs)
    same = np.array_equal(np.isfinite(mine), finite) and np.array_equal(mine[~finite], theirs[~finite], equal_nan=True)
    return same and np.allclose(mine[finite], theirs[finite], rtol=1e-4)
