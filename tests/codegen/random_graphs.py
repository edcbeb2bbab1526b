"""Random programs over every op: samples' parameters where an op has a shape of its own, small shapes everywhere."""

from __future__ import annotations

import numpy as np

from pequegrad.dtypes import float64
from pequegrad.ops.core import Family
from pequegrad.ops.registry import REGISTRY
from pequegrad.tensor import Tensor
from pequegrad.trace.graph import GraphBuilder, Output, Value
from tests.codegen.tracing import Program, Traced

REDUCTIONS = ("sum", "amax", "amin", "prod", "argmax", "argmin", "sum", "sum")
SAMPLED = sorted(
    name for name, op in REGISTRY.items() if isinstance(op.lowering, Family) and op.__module__.startswith("pequegrad.")
)
UNARY = ("exp", "tanh", "neg", "relu", "square", "sigmoid", "abs")
BINARY = ("add", "mul", "sub", "maximum", "minimum")


class RandomProgram:
    """Adds random applications to a graph until it has as many as asked for."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.builder = GraphBuilder()
        self.arrays: list[np.ndarray] = []
        self.values: list[Value] = []

    def add_input(self, array: np.ndarray, role: str) -> Value:
        tensor = Tensor(array)
        self.arrays.append(tensor.array)
        return self.builder.add_input(tensor.spec, role, f"{role}{len(self.arrays)}")

    def pick(self, *choices):
        return choices[self.random.integers(len(choices))]

    def value(self) -> Value:
        recent = self.values[-6:] if self.random.random() < 0.7 else self.values
        return recent[self.random.integers(len(recent))]

    def apply(self, name: str, *inputs: Value, **params) -> Value:
        outputs = self.builder.apply(REGISTRY[name], inputs, params)
        for value in outputs:
            if value.dtype is float64:
                self.values.append(value)
        return outputs[0]

    def as_float(self, value: Value) -> Value:
        return value if value.dtype is float64 else self.apply("cast", value, dtype=float64)

    def bounded(self, value: Value) -> Value:
        """Keep numbers small, and away from ties that rounding would decide."""
        return self.apply("tanh", value)

    def step(self) -> None:
        kind = self.pick(
            "unary", "binary", "binary", "reduce", "reduce", "view", "view", "matmul", "sampled", "constant", "softmax"
        )
        getattr(self, kind)()

    def unary(self) -> None:
        self.bounded(self.apply(self.pick(*UNARY), self.value()))

    def constant(self) -> None:
        x = self.value()
        number = float(self.pick(0.0, 1.0, -1.0, 0.5, -0.0))
        full = self.apply("full", shape=self.pick((), x.shape), value=number, dtype=float64)
        self.bounded(self.apply(self.pick("add", "mul", "sub", "maximum"), x, full))
        if x.shape:
            dim = int(self.random.integers(len(x.shape)))
            inner = int(np.prod(x.shape[dim + 1 :], dtype=int))
            shape = (1,) * dim + x.shape[dim:]
            counter = self.apply(
                "iota", shape=shape, dim=dim, dtype=float64, inner=max(inner, 1), extent=max(x.shape[dim], 1)
            )
            self.bounded(self.apply("mul", x, counter))

    def binary(self) -> None:
        x = self.value()
        fitting = [v for v in self.values if self.broadcasts(v.shape, x.shape)]
        y = fitting[self.random.integers(len(fitting))]
        result = self.apply(self.pick(*BINARY), *self.pick((x, y), (y, x)))
        if self.random.random() < 0.3:
            mask = self.apply(self.pick("lt", "ge", "eq"), x, y)
            result = self.apply("where", mask, result, self.pick(x, y))
        self.bounded(result)

    @staticmethod
    def broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
        return all(m == n or m == 1 or n == 1 for m, n in zip(a[::-1], b[::-1]))

    def reduce(self) -> None:
        x = self.value()
        if not x.shape or not x.spec.size:
            return
        dims = tuple(d for d in range(len(x.shape)) if self.random.random() < 0.5) or (len(x.shape) - 1,)
        name = self.pick(*REDUCTIONS)
        if name.startswith("arg"):
            dims = dims[:1]
        self.bounded(self.as_float(self.apply(name, x, dims=dims, keepdim=bool(self.random.integers(2)))))

    def softmax(self) -> None:
        x = self.value()
        if not x.shape or not x.spec.size:
            return
        dims = (int(self.random.integers(len(x.shape))),)
        shifted = self.apply("sub", x, self.apply("amax", x, dims=dims, keepdim=True))
        powers = self.apply("exp", shifted)
        self.apply("div", powers, self.apply("sum", powers, dims=dims, keepdim=True))

    def view(self) -> None:
        x = self.value()
        shape = x.shape
        kind = self.pick("permute", "reshape", "expand", "slice", "copy")
        if kind == "permute":
            self.apply("permute", x, dims=tuple(int(d) for d in self.random.permutation(len(shape))))
        elif kind == "reshape":
            flat = x.spec.size
            options = [(flat,), (1, *shape), (*shape, 1)]
            options += [(n, flat // n) for n in (2, 3, 4, 6) if flat and flat % n == 0]
            self.apply("reshape", x, shape=options[self.random.integers(len(options))])
        elif kind == "expand" and x.spec.size < 200:
            self.apply("expand", x, shape=(int(self.random.integers(1, 3)), *shape))
        elif kind == "slice" and shape:
            sizes = tuple(
                int(self.random.integers(0 if self.random.random() < 0.1 else 1, n + 1)) if n else 0 for n in shape
            )
            starts = tuple(int(self.random.integers(0, n - s + 1)) for n, s in zip(shape, sizes, strict=True))
            steps = tuple(self.pick(1, -1) for _ in shape)
            starts = tuple(a + s - 1 if t < 0 and s else a for a, s, t in zip(starts, sizes, steps, strict=True))
            starts = tuple(a if s else 0 for a, s in zip(starts, sizes, strict=True))
            self.apply("slice", x, starts=starts, sizes=sizes, steps=steps)
        else:
            self.apply("copy", x)

    def matmul(self) -> None:
        x = self.value()
        if len(x.shape) < 2:
            return
        fitting = [v for v in self.values if len(v.shape) >= 2 and v.shape[-1] == x.shape[-1]]
        y = fitting[self.random.integers(len(fitting))]
        if not self.broadcasts(x.shape[:-2], y.shape[:-2]):
            return
        n = len(y.shape)
        swapped = self.apply("permute", y, dims=(*range(n - 2), n - 1, n - 2))
        product = self.apply("matmul", x, swapped)
        if self.random.random() < 0.4:
            n = len(product.shape)
            product = self.apply("permute", product, dims=(*range(n - 2), n - 1, n - 2))
        self.bounded(product)

    def sampled(self) -> None:
        """An application of an op with a family of its own, fed with values of this program where they fit."""
        name = SAMPLED[self.random.integers(len(SAMPLED))]
        samples = REGISTRY[name].samples()
        sample = samples[self.random.integers(len(samples))]
        inputs = []
        for array in sample.arrays:
            if array.dtype.kind == "f":
                source = self.value()
                inputs.append(self.spread(source, array.shape))
            else:
                inputs.append(self.add_input(array, "argument"))
        params = {key: float64 if key == "dtype" and name.startswith("random_") and name != "random_int" else value
                  for key, value in sample.params}  # fmt: skip
        for output in self.builder.apply(REGISTRY[name], inputs, params):
            self.bounded(self.as_float(output))

    def spread(self, x: Value, shape: tuple[int, ...]) -> Value:
        """Return a value of ``shape`` that depends on ``x``."""
        size = int(np.prod(shape, dtype=int))
        number = self.apply("sum", x, dims=tuple(range(len(x.shape))), keepdim=False)
        inner = self.apply("iota", shape=(size,), dim=0, dtype=float64, inner=1, extent=max(size, 1))
        mixed = self.apply("sin", self.apply("add", inner, self.apply("tanh", number)))
        return self.apply("reshape", mixed, shape=shape)


def random_program(seed: int, length: int = 25) -> Traced:
    """Return a random graph with states that it updates, and arrays for its inputs."""
    program = RandomProgram(seed)
    random = program.random
    shapes = [(3, 4), (4,), (2, 3, 4), (3, 1), (), (6,), (4, 4), (1, 4)]
    states = []
    for shape in shapes:
        array = np.asarray(random.standard_normal(shape))
        role = "state" if random.random() < 0.5 else "argument"
        value = program.add_input(array, role)
        program.values.append(value)
        if role == "state":
            states.append(value)
    for _ in range(length):
        program.step()
    builder = program.builder
    for i, position in enumerate(random.integers(len(program.values), size=3)):
        builder.outputs.append(Output(program.values[position], "result", f"result{i}"))
    builder.outputs.append(Output(builder.outputs[0].value, "result", "result_again"))
    for state in states:
        fitting = [value for value in program.values if value.spec == state.spec]
        new = fitting[random.integers(len(fitting))]
        if random.random() < 0.5:
            (new,) = builder.apply(REGISTRY["sub"], (state, new), {})
        if random.random() < 0.8:
            builder.outputs.append(Output(new, "update", f"update{len(builder.outputs)}", state))
    return Traced(builder.build(), program.arrays)


def updates_in_parts(seed: int) -> Traced:
    """Return a graph that writes parts of three states, in rows and at indices, one after the other and into each other."""
    p = Program(seed)
    random = p.random
    states = [p.input("state") for _ in range(3)]
    x = p.input("argument")
    now = list(states)
    known = [*states, x]
    for _ in range(random.integers(2, 9)):
        at = random.integers(3)
        start, count = [(0, 1), (0, 2), (1, 2), (2, 1), (0, 3)][random.integers(5)]
        source = known[random.integers(len(known))]
        kind = random.integers(7)
        if kind == 0:
            other = start if random.integers(2) else int(random.integers(0, 4 - count))
            rows = p.rows(source, other, count)
            now[at] = p.with_rows(now[at], start, count, p.apply("neg", rows) if random.integers(2) else rows)
        elif kind == 1:
            now[at] = p.apply("slice_update", now[at], p.rows(source, 0, 2), starts=(2, 0), sizes=(2, 3), steps=(-2, 1))
        elif kind == 2:
            index = p.input("argument", random.integers(0, 3, 2))
            now[at] = p.apply("scatter", now[at], p.rows(source, 0, 2), index, dim=0, aligned=False)
        elif kind == 3:
            index = p.input("argument", random.integers(0, 3, (2, 2)))
            part = p.apply("slice", source, starts=(0, 0), sizes=(2, 2), steps=(1, 1))
            now[at] = p.apply("scatter", now[at], part, index, dim=int(random.integers(2)), aligned=True)
        elif kind == 4:
            now[at] = [source, p.apply("matmul", source, x), p.apply("add", now[at], source)][random.integers(3)]
        elif kind == 5:
            now[at] = p.with_rows(now[at], start, count, p.apply("sin", p.rows(now[at], start, count)))
        else:
            p.result(p.apply("permute", now[at], dims=(1, 0)) if random.integers(2) else p.rows(source, start, count))
        known += now
    for state, value in zip(states, now, strict=True):
        p.update(state, value)
    return p.traced()
