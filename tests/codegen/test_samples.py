"""Every op of the registry, lowered alone: its plan gives what its own NumPy evaluation gives."""

from __future__ import annotations

import pytest

import pequegrad  # noqa: F401 - registers all ops
from pequegrad import targets
from pequegrad.codegen.lower import lower
from pequegrad.errors import NotCompilable
from pequegrad.ops.registry import REGISTRY
from tests.codegen.tracing import check_plan, one_op

CASES = [
    pytest.param(name, sample, id=f"{name}-{i}")
    for name, op in sorted(REGISTRY.items())
    if op.__module__.startswith("pequegrad.")
    for i, sample in enumerate(op.samples())
]


@pytest.mark.parametrize(("name", "sample"), CASES)
def test_plan_of_one_op_gives_what_numpy_gives(name, sample):
    traced = one_op(name, sample.arrays, dict(sample.params))
    specs = tuple(item.value.spec for item in traced.graph.inputs)
    is_refused = REGISTRY[name].refusal(specs, (None,) * len(specs)) is not None
    if isinstance(REGISTRY[name].lowering, NotCompilable) or is_refused:
        with pytest.raises(NotCompilable, match=name):
            lower(traced.graph, targets.get("cpp"))
        return
    check_plan(traced, name)
