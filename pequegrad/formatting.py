"""How a tensor is shown: short, exact, and nothing that is not there.

Invariant: a number is printed with the fewest digits that read back as the same number of its dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .dtypes import as_dtype, bfloat16

EDGE_ITEMS = 3
FULL_UP_TO = 1000
LINE_WIDTH = 100
# Between these a number reads best without an exponent.
PLAIN_FROM, PLAIN_BELOW = 1e-4, 1e8


def format_number(value: Any) -> str:
    """Return a NumPy scalar with the fewest digits that are exact in its dtype; a whole float without a point."""
    if isinstance(value, np.bool_ | bool):
        return str(bool(value))
    if isinstance(value, np.integer | int):
        return str(int(value))
    if not np.isfinite(value):
        return str(float(value))
    if as_dtype(value.dtype) is bfloat16:
        value = _shortest(value)
    if value == 0 or PLAIN_FROM <= abs(float(value)) < PLAIN_BELOW:
        return np.format_float_positional(value, trim="-")
    return np.format_float_scientific(value, trim="-")


def _shortest(value: Any) -> np.float64:
    """Return the number of fewest decimal digits that rounds to this bfloat16, which NumPy cannot find."""
    for digits in range(4):
        short = np.float64(f"{float(value):.{digits}e}")
        if short.astype(value.dtype) == value:
            return short
    return np.float64(value)


def format_array(array: np.ndarray) -> str:
    """Return nested brackets, columns aligned, long dimensions shortened to their first and last elements."""
    if array.ndim == 0:
        return format_number(array[()])
    if array.size == 0:
        return "[]" if array.ndim == 1 else f"[] of shape {array.shape}"
    is_short = array.size > FULL_UP_TO
    width = max(len(format_number(value)) for value in _shown(array, is_short).flat)
    # np.array2string wraps and shortens; a right-justified number per cell aligns the columns.
    align = array.ndim > 1
    return np.array2string(
        array,
        separator=", ",
        threshold=FULL_UP_TO,
        edgeitems=EDGE_ITEMS,
        max_line_width=LINE_WIDTH,
        formatter={"all": lambda value: format_number(value).rjust(width if align else 0)},
    )


def _shown(array: np.ndarray, is_short: bool) -> np.ndarray:
    """Return the part of ``array`` whose elements are printed."""
    if not is_short:
        return array
    for dim, extent in enumerate(array.shape):
        if extent > 2 * EDGE_ITEMS:
            array = np.take(array, [*range(EDGE_ITEMS), *range(extent - EDGE_ITEMS, extent)], axis=dim)
    return array


def format_tensor(tensor: Any) -> str:
    """Return the elements of a tensor as text; of a traced tensor, which has none, its spec."""
    return repr(tensor) if tensor.is_traced else format_array(tensor.__array__())


def format_html(tensor: Any) -> str:
    """Return the tensor for a notebook: dtype and shape, and the elements, of a matrix as a table."""
    facts = f"{tensor.dtype.name}, shape {tensor.shape}" + (", requires grad" if tensor.requires_grad else "")
    head = f"<div><code>Tensor {facts}</code>"
    if tensor.is_traced or tensor.ndim != 2 or tensor.spec.size == 0:
        # Numbers, brackets and the words of a spec: nothing in them needs escaping.
        return f"{head}<pre>{format_tensor(tensor)}</pre></div>"
    array = tensor.__array__()
    rows = "".join(f"<tr>{''.join(_cells(array, row))}</tr>" for row in _indices(array.shape[0]))
    return f"{head}<table>{rows}</table></div>"


def _cells(array: np.ndarray, row: int | None) -> list[str]:
    return [
        f"<td>{'…' if row is None or column is None else format_number(array[row, column])}</td>"
        for column in _indices(array.shape[1])
    ]


def _indices(extent: int) -> list[int | None]:
    """Return the indices shown along a dimension of a table, with None where some are left out."""
    if extent <= 4 * EDGE_ITEMS:
        return list(range(extent))
    return [*range(EDGE_ITEMS), None, *range(extent - EDGE_ITEMS, extent)]
