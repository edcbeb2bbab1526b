"""Who may import whom: the package's imports, read from its source, against the table of the house."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pequegrad"

# Rooms that import nothing of ours and that everyone may import. Among themselves only `records`, the base of
# light classes, and `errors`, which holds the exceptions that the others raise.
FOUNDATION = ("records", "errors", "dtypes", "config", "pytree", "locations", "arrays", "forking")

# room → what it may import beside the foundation and itself. A dotted name allows that module alone.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "errors": ("locations",),  # an error says where the user called
    "locations": (),
    "records": (),
    "dtypes": (),
    "config": (),
    "arrays": (),
    "forking": (),
    "pytree": (),
    "storage": (),
    "ops": (),
    # Relaxed from ops.core: the sweep is itself written in ops (un-broadcasting is a sum, a missing gradient
    # zeros).
    "autodiff": ("ops",),
    "serialization": ("tensor", "ops"),
    "formatting": (),  # how a tensor prints: it takes arrays and text, so it needs nothing of ours
    "tensor": ("ops", "autodiff", "storage", "formatting"),
    "calling": ("tensor", "ops", "storage"),
    # Relaxed by storage: the tracer must tell whose bytes a captured tensor shares.
    "trace": ("tensor", "ops", "storage", "calling"),
    "passes": ("trace.graph", "ops.core", "ops.registry"),
    "targets": (),
    "codegen": ("trace.graph", "ops.core", "ops.registry", "ops.sharding", "targets"),
    "build": ("targets",),
    # Both sides of a saved step: what writes it knows the trace and the plan; what runs it must not, which
    # tests/export sees to.
    "export": ("tensor", "ops", "serialization", "targets", "build", "trace", "codegen", "calling"),
    "nn": ("tensor", "ops"),
    "optim": ("tensor", "ops"),
    "data": ("tensor", "ops"),
    "native": ("build",),
    "profiling": ("build", "codegen", "targets"),
    "planning": ("passes", "codegen", "targets", "trace.graph", "native"),
    "tuning": ("native", "planning", "build", "codegen", "targets", "trace.graph"),
    "making": ("planning", "tuning", "profiling", "build", "codegen", "targets", "trace", "export"),
    "compiler": (
        "native",
        "calling",
        "making",
        "profiling",
        "storage",
        "ops",
        "autodiff",
        "tensor",
        "trace",
        "passes",
        "targets",
        "codegen",
        "build",
        "export",
        "nn",
        "optim",
        "data",
    ),
    "insight": ("compiler", "build.cache", "trace.graph", "codegen.plan"),
    "cli": (
        "compiler",
        "export.loading",
        "export.machine",
        "export.manifest",
        "build.cache",
        "trace.graph",
        "codegen.plan",
        "insight",
    ),
    # The public door, and `python -m pequegrad`: they re-export or start, and nothing imports them.
    "__init__": ("*",),
    "__main__": ("cli",),
}

# What only one module may use, and why: architecture's rules 3 and 9.
ONLY_IN = {
    "jinja2": ("codegen.emit",),
    "subprocess": ("build.toolchain",),
    "environment": ("config",),
}

# Importing our own modules inside a function is how cycles are hidden. These do it to start fast: the door to keep
# `import pequegrad` light, the compiler to run a step that the cache has without what makes steps, the command line
# to load only the command that was asked for.
MAY_IMPORT_LATE = ("__init__", "compiler", "cli")


def module_name(path: Path) -> str:
    """Return the name below the package: 'ops.core', 'ops' for ops/__init__.py, '__init__' for the door."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[-1] == "__init__" and len(parts) > 1:
        parts = parts[:-1]
    return ".".join(parts)


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module_name(path): path for path in FILES}


def room_of(module: str) -> str:
    return module.split(".")[0]


def own_imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[ast.stmt, str]]:
    """Yield (statement, our module that it imports) for each import of pequegrad in ``tree``."""
    own = [] if module == "__init__" else module.split(".")
    package = own if is_package and module != "__init__" else own[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "pequegrad":
                    yield node, ".".join(alias.name.split(".")[1:]) or "__init__"
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - (node.level - 1)] if node.level > 1 else list(package)
                base += node.module.split(".") if node.module else []
            elif node.module and node.module.split(".")[0] == "pequegrad":
                base = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                yield node, inner if inner in MODULES else ".".join(base) or "__init__"


def is_allowed(module: str, imported: str) -> bool:
    room, target = room_of(module), room_of(imported)
    if room == target:
        return True
    if target in FOUNDATION and (room not in FOUNDATION or target in ("records", "errors")):
        return True
    allowed = MAY_IMPORT.get(room, ())
    return "*" in allowed or any(imported == name or imported.startswith(f"{name}.") for name in allowed)


def outside_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, key of ONLY_IN) for each use of jinja2, of another process, and of the environment."""
    runners = (
        "system",
        "popen",
        "posix_spawn",
        "posix_spawnp",
        "fork",
        "execv",
        "execve",
        "execvp",
        "spawnv",
    )
    readers = ("environ", "environb", "getenv", "putenv", "unsetenv")
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module.split(".")[0]]
            if node.module == "os":
                names += [f"os.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            names = [f"os.{node.attr}"]
        for name in names:
            if name in ("jinja2", "subprocess"):
                yield node.lineno, name
            elif name in [f"os.{runner}" for runner in runners]:
                yield node.lineno, "subprocess"
            elif name in [f"os.{reader}" for reader in readers]:
                yield node.lineno, "environment"


def late_own_imports(tree: ast.AST, module: str, is_package: bool) -> list[int]:
    """Return the lines of imports of our own modules that stand inside a function."""
    return [
        statement.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for statement, _ in own_imports(function, module, is_package)
    ]


def star_imports(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """Return one cycle of ``edges`` as a list of modules that starts and ends alike, or an empty list."""
    finished: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in finished:
            return []
        for imported in sorted(edges.get(module, ())):
            if cycle := visit(imported, [*trail, module]):
                return cycle
        finished.add(module)
        return []

    for module in sorted(edges):
        if cycle := visit(module, []):
            return cycle
    return []


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


per_file = pytest.mark.parametrize("path", FILES, ids=module_name)


@per_file
def test_room_imports_only_what_the_table_allows(path):
    module = module_name(path)
    assert room_of(module) in MAY_IMPORT, f"{path}: a new room. Add it to MAY_IMPORT and to the README's map."
    forbidden = [
        f"{path.relative_to(ROOT)}:{statement.lineno}: {module} imports {imported}"
        for statement, imported in own_imports(parse(path), module, path.name == "__init__.py")
        if not is_allowed(module, imported)
    ]
    assert not forbidden, "\n".join(forbidden)


@per_file
def test_outside_world_is_touched_only_by_its_one_module(path):
    module = module_name(path)
    forbidden = [
        f"{path.relative_to(ROOT)}:{line}: only {', '.join(ONLY_IN[key])} may use {key}"
        for line, key in outside_uses(parse(path))
        if module not in ONLY_IN[key]
    ]
    assert not forbidden, "\n".join(forbidden)


@per_file
def test_no_own_import_hides_in_a_function(path):
    module = module_name(path)
    if room_of(module) not in MAY_IMPORT_LATE:
        lines = late_own_imports(parse(path), module, path.name == "__init__.py")
        assert not lines, f"{path.relative_to(ROOT)}: lines {lines}. A cycle means that something is in the wrong room."


@per_file
def test_the_registry_is_asked_where_it_is_whole(path):
    """In ops.core it has the ops that are imported so far: without layers in the program, a pass would miss theirs."""
    module = module_name(path)
    if room_of(module) not in ("ops", "tensor") and module != "export.calls":  # of views and methods, none is late
        taken = [
            node.lineno
            for node in ast.walk(parse(path))
            if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("ops.core")
            if "REGISTRY" in [alias.name for alias in node.names]
        ]
        assert not taken, f"{path.relative_to(ROOT)}: lines {taken}. Import it from ops.registry."


@per_file
def test_no_star_import(path):
    assert star_imports(parse(path)) == [], path


def test_modules_import_each_other_in_no_cycle():
    edges = {
        module: {
            imported
            for _, imported in own_imports(parse(path), module, path.name == "__init__.py")
            if imported != module
        }
        for module, path in MODULES.items()
    }
    assert find_cycle(edges) == []


def test_the_readers_see_what_they_forbid():
    """The rules above can fail: planted offences are found."""
    planted = ast.parse(
        "import os, subprocess\n"
        "from jinja2 import Environment\n"
        "from os import getenv\n"
        "from ..compiler import compile_step\n"
        "from ..ops.core import *\n"
        "value = os.environ['X']\n"
        "def late():\n"
        "    from ..tensor import Tensor\n"
    )
    assert sorted(set(outside_uses(planted))) == [
        (1, "subprocess"),
        (2, "jinja2"),
        (3, "environment"),
        (6, "environment"),
    ]
    imports = [imported for _, imported in own_imports(planted, "codegen.lower", is_package=False)]
    assert imports == ["compiler", "ops.core", "tensor"]
    assert [is_allowed("codegen.lower", imported) for imported in imports] == [False, True, False]
    assert late_own_imports(planted, "codegen.lower", is_package=False) == [8]
    assert star_imports(planted) == [5]
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
