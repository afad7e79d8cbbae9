"""The rules of STYLE that a machine can keep: who may import what, and how long a function may be."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "virnuc_async"
# A module imports only from those before it.
ORDER = [
    "failures",
    "settings",
    "files",
    "sequences",
    "fragments",
    "orfs",
    "tokens",
    "batches",
    "networks",
    "calibration",
    "bundles",
    "references",
    "upstream",
    "connections",
    "unfinished",
    "downloads",
    "published",
    "devices",
    "replica",
    "verification",
    "salvage",
    "lock",
    "store",
    "features",
    "pairs",
    "results",
    "progress",
    "report",
    "pipeline",
    "labels",
    "leaks",
    "measures",
    "charts",
    "evaluation",
    "cards",
    "training",
    "cli",
]
TOP = {"cli", "training"}  # may import whatever there is
ONLY_IN = {
    "torch": {"networks", "upstream", "devices", "replica", "features", "training"},
    "anyio": {"replica", "pipeline", "cli"},
    "asyncio": {"replica", "pipeline", "cli"},
    "sys": {"cli"},
    "argparse": {"cli", "upstream"},  # whose Namespace is in fair-esm's files
    "sqlite3": {"store", "salvage"},
    "multiprocessing": set(),
    "unittest": set(),
}
LONGEST, MOST_PARAMETERS, MOST_BROAD = 80, 6, 1

MODULES = sorted(PACKAGE.rglob("*.py"))
ALL = [*MODULES, ROOT / "virnucpro_async.py"]
TESTS = sorted((ROOT / "tests").glob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
each_file = pytest.mark.parametrize("path", [*ALL, *TESTS], ids=lambda path: path.name)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def group(path: Path) -> str:
    """Give the module's name, or that of the folder that it is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(path: Path) -> Iterator[str]:
    """Give the parts of this package that *path* imports, by their names in ORDER."""
    depth = len(path.relative_to(PACKAGE).parts)  # 1 for a module of the package itself
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (name.split(".")[0] for name in names)
        if isinstance(node, ast.ImportFrom) and node.level < depth and node.level:
            yield group(path)  # from beside it, in its folder


def foreign_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


def functions(node: ast.AST) -> Iterator[Function]:
    return (inner for inner in ast.walk(node) if isinstance(inner, Function))


@each_module
def test_imports_point_up_the_data_flow(path: Path) -> None:
    name = group(path)
    if name == "__init__":
        assert not list(own_imports(path))
        return
    assert name in ORDER, f"where does {name} stand?"
    for other in set(own_imports(path)) - {name, "__version__"}:
        assert name in TOP or ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"


@each_module
def test_libraries_stay_where_they_belong(path: Path) -> None:
    for library in foreign_imports(path):
        assert library != "virnuc_async", "imports within the package are relative"
        assert group(path) in ONLY_IN.get(library, {group(path)}), f"{path.name} imports {library}"


@each_module
def test_only_the_command_line_prints_and_reads_the_environment(path: Path) -> None:
    if group(path) == "cli":
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "input", "exit", "eval", "exec"), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "getenv", "putenv", "_exit", "fork"), f"line {node.lineno}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    module = tree(path)
    assert path.name == "__init__.py" or ast.get_docstring(module), "the module has none"
    for owner in (module, *(node for node in module.body if isinstance(node, ast.ClassDef))):
        if isinstance(owner, ast.ClassDef) and owner.name.startswith("_"):
            continue
        for node in owner.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} has none"


@each_file
def test_functions_are_short_and_take_little(path: Path) -> None:
    for function in functions(tree(path)):
        assert function.end_lineno
        lines = function.end_lineno - function.lineno + 1
        assert lines <= LONGEST, f"{function.name} has {lines} lines"
        given = function.args
        count = sum(
            parameter.arg not in ("self", "cls")
            for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs)
        )
        assert count <= MOST_PARAMETERS, f"{function.name} takes {count}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_imports_stand_at_the_top(path: Path) -> None:
    if path == PACKAGE / "cli.py":
        return
    for function in functions(tree(path)):
        inner = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not inner, f"{function.name} imports"


def is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or getattr(kind, "id", "") in ("Exception", "BaseException") for kind in kinds)


def test_hardly_anything_is_caught_broadly() -> None:
    broad = [
        f"{path.name}:{node.lineno}"
        for path in ALL
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    ]
    assert len(broad) <= MOST_BROAD, broad


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_tests_use_real_things(path: Path) -> None:
    names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
    names |= {argument.arg for function in functions(tree(path)) for argument in function.args.args}
    assert not names & {"Mock", "MagicMock", "AsyncMock", "mocker"}
    assert not {"unittest", "mock", "pytest_mock"} & set(foreign_imports(path))


def test_median_function_is_at_most_ten_lines() -> None:
    lines = sorted(f.end_lineno - f.lineno + 1 for path in ALL for f in functions(tree(path)) if f.end_lineno)
    assert lines[len(lines) // 2] <= 10
    assert lines[len(lines) * 9 // 10] <= 40
