"""Parameter: a tensor that a Module lists among those to train.

Invariant: a Parameter is a leaf; it shares memory with the tensor it was made from.
"""

from __future__ import annotations

from typing import Any

from ..errors import TraceError
from ..ops.core import as_tensor
from ..tensor import Tensor


class Parameter(Tensor):
    """A leaf Tensor, ``requires_grad=True`` unless told otherwise, that a module lists as its parameter.

    ``data``: a Tensor or array of a floating-point dtype, whose memory is shared; or numbers. Raises DTypeError for
    integers that shall require grad, TraceError for a tensor that exists only inside a trace.
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        source = as_tensor(data)
        if source.is_traced:
            raise TraceError(
                f"Parameter of a traced tensor {source.spec}: it exists only inside the compiled step. "
                "Make parameters before compiling, in the module's __init__."
            )
        if source._view is not None:
            source = source.detach()
        self._init(source.storage, source.spec, source.array, source._view)
        self.requires_grad = requires_grad

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"
