"""Short programs to copy from. Run one from the repository's root: ``python -m examples.conv_mnist``."""
