"""torch.nn.functional's names for what the ops already are.

Invariant: nothing is computed here.
"""

from __future__ import annotations

from ..ops.activations import elu, gelu, leaky_relu, log_softmax, logsigmoid, relu6, silu, softmax, softplus
from ..ops.indexing import one_hot
from ..ops.layers import batch_norm, embedding, layer_norm, linear, normalize, scaled_dot_product_attention
from ..ops.losses import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    l1_loss,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from ..ops.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from ..ops.random import dropout
from ..ops.selection import relu
from ..ops.slicing import pad
from ..ops.transcendental import sigmoid, tanh
from ..ops.window import conv1d, conv2d

__all__ = [
    "adaptive_avg_pool2d", "avg_pool2d", "batch_norm", "binary_cross_entropy_with_logits", "conv1d", "conv2d",
    "cross_entropy", "dropout", "elu", "embedding", "gelu", "huber_loss", "l1_loss", "layer_norm", "leaky_relu",
    "linear", "log_softmax", "logsigmoid", "max_pool2d", "mse_loss", "nll_loss", "normalize", "one_hot", "pad",
    "relu", "relu6", "scaled_dot_product_attention", "sigmoid", "silu", "smooth_l1_loss", "softmax", "softplus", "tanh",
]  # fmt: skip
