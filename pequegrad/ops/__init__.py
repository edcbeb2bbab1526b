"""All ops, one class each; see core.py for what an op is."""
