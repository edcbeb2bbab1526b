"""Steps ahead of time: one folder with module, state and manifest, and what runs it without tracing or compiling.

Invariant: ``loading`` and all that it imports know nothing of tracing, code generation or compilers; ``saving`` is what
joins the two sides.
"""
