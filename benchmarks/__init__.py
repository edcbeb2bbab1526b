"""Each peer and pequegrad on the same work, in one run: ``python -m benchmarks.cpu`` and ``.startup``."""
