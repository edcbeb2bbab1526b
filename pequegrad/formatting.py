"""How a tensor is shown: short, exact, and nothing that is not there.

Invariant: a number is printed with the fewest digits that read back as the same number of its dtype.
"""

from __future__ import annotations

import html
from typing import Any

import numpy as np

EDGE_ITEMS = 3
FULL_UP_TO = 1000


def _scalar(value: Any) -> str:
    if isinstance(value, np.bool_ | bool):
        return str(bool(value))
    if isinstance(value, np.integer | int):
        return str(int(value))
    return np.format_float_positional(value, trim="-") if 1e-4 <= abs(value) < 1e8 or value == 0 else _exponent(value)


def _exponent(value: Any) -> str:
    return np.format_float_scientific(value, trim="-") if np.isfinite(value) else str(float(value))


def format_tensor(tensor: Any) -> str:
    """Return nested brackets with shortest-exact numbers, columns aligned, long dimensions shortened."""
    if tensor.is_traced:
        return repr(tensor)
    array = tensor.array.astype(np.float32) if tensor.dtype.name == "bfloat16" else tensor.array
    if array.ndim == 0:
        return _scalar(array[()])
    return np.array2string(
        array,
        separator=", ",
        threshold=FULL_UP_TO,
        edgeitems=EDGE_ITEMS,
        max_line_width=100,
        formatter={"all": _scalar},
    )


def format_html(tensor: Any) -> str:
    """Return a small table: dtype, shape, and the numbers."""
    head = f"Tensor {tensor.dtype.name} {tensor.shape}" + (" requires_grad" if tensor.requires_grad else "")
    return f"<div><code>{html.escape(head)}</code><pre>{html.escape(format_tensor(tensor))}</pre></div>"
