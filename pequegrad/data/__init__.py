"""Data: datasets, the loader that makes batches of them, and MNIST.

Invariant: nothing here knows about tracing; a batch is a fresh Tensor that a compiled step takes as an
argument.
"""

from .datasets import Dataset, Subset, TensorDataset, random_split
from .loader import DataLoader, default_collate
from .mnist import mnist

__all__ = ["DataLoader", "Dataset", "Subset", "TensorDataset", "default_collate", "mnist", "random_split"]
