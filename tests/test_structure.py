"""The rules of STYLE that a machine can keep: who may import what, and how long a function may be."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "virnuc_async"
# A file imports from its own room, relatively, and from the rooms before it, absolutely.
ORDER = [
    "_version",
    "text",
    "errors",
    "fileio",
    "settings",
    "log",
    "downloads",
    "sequences",
    "networks",
    "models",
    "engine",
    "runs",
    "outputs",
    "pipeline",
    "scorer",
    "learning",
    "distributed",
    "cli",
]
ENTRANCES = {"__init__", "__main__"}  # they hand on what is below them
ONLY_IN = {
    "torch": {"networks", "models", "engine", "learning"},
    "triton": {"networks"},
    "aiofiles": {"sequences", "runs"},
    "esm": {"models"},
    "transformers": {"models"},
    "anyio": {"sequences", "engine", "runs", "outputs", "pipeline", "scorer", "distributed", "cli"},
    "asyncio": {"sequences", "engine", "pipeline", "scorer", "cli"},
    "sys": {"cli", "sequences"},  # there: errors that nobody can catch
    "obstore": {"sequences", "distributed"},
    "pysam": {"sequences"},
    "ray": {"distributed"},
    "duckdb": {"outputs"},
    "argparse": {"cli", "models"},  # whose Namespace is in fair-esm's files
    "sqlite3": {"runs"},
    "multiprocessing": set(),
    "unittest": set(),
}
LONGEST, MOST_PARAMETERS, MOST_BROAD = 80, 6, 1

MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
each_file = pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(path)))


def room(path: Path) -> str:
    """Return the name of the room that *path* is in; a module of the ground is a room of its own."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return name


def imported_rooms(path: Path) -> Iterator[str]:
    """Yield the room of each absolute import of this package."""
    for node in nodes(path):
        if (
            isinstance(node, ast.ImportFrom)
            and not node.level
            and (node.module or "").startswith("virnuc_async")
        ):
            names = (
                [node.module] if "." in str(node.module) else [f"virnuc_async.{a.name}" for a in node.names]
            )
            yield from (part for part in (str(name).split(".")[1] for name in names))


def third_party_imports(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0]


@cache
def functions(path: Path) -> tuple[Function, ...]:
    return tuple(node for node in nodes(path) if isinstance(node, Function))


@each_module
def test_imports_point_up_the_list_of_rooms(path: Path) -> None:
    name = room(path)
    if name in ENTRANCES:
        return
    assert name in ORDER, f"where does {name} stand?"
    # A file in a folder of a room cannot reach the room relatively.
    own = {name} if path.parent.parent != PACKAGE and path.parent != PACKAGE else set()
    for other in set(imported_rooms(path)) - own:
        assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"


@each_module
def test_relative_imports_stay_in_the_room(path: Path) -> None:
    levels = [node.level for node in nodes(path) if isinstance(node, ast.ImportFrom)]
    assert max(levels, default=0) <= 1


@each_module
def test_libraries_stay_where_they_belong(path: Path) -> None:
    for library in third_party_imports(path):
        assert room(path) in ONLY_IN.get(library, {room(path)}), f"{path.name} imports {library}"


@each_module
def test_only_the_command_line_prints_and_reads_the_environment(path: Path) -> None:
    if room(path) == "cli":
        return
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "input", "exit", "eval", "exec"), f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "getenv", "putenv", "_exit", "fork"), f"line {node.lineno}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_public_has_a_docstring(path: Path) -> None:
    module = tree(path)
    assert path.name == "__init__.py" or ast.get_docstring(module), "the module has none"
    for owner in (module, *(node for node in module.body if isinstance(node, ast.ClassDef))):
        if isinstance(owner, ast.ClassDef) and owner.name.startswith("_"):
            continue
        for node in owner.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} has none"


def is_kernel_constant(parameter: ast.arg) -> bool:
    return isinstance(parameter.annotation, ast.Attribute) and parameter.annotation.attr == "constexpr"


@each_file
def test_functions_are_short_and_take_little(path: Path) -> None:
    for function in functions(path):
        assert function.end_lineno
        lines = function.end_lineno - function.lineno + 1
        assert lines <= LONGEST, f"{function.name} has {lines} lines"
        given = function.args
        # The constants of a GPU kernel are no parameters: each set of them is a kernel of its own.
        count = sum(
            parameter.arg not in ("self", "cls") and not is_kernel_constant(parameter)
            for parameter in (*given.posonlyargs, *given.args, *given.kwonlyargs)
        )
        assert count <= MOST_PARAMETERS, f"{function.name} takes {count}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_stand_at_the_top(path: Path) -> None:
    if room(path) == "cli" or path.name == "__init__.py":
        return
    for function in functions(path):
        inner = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not inner, f"{function.name} imports"


def is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or getattr(kind, "id", "") in ("Exception", "BaseException") for kind in kinds)


def test_hardly_anything_is_caught_broadly() -> None:
    broad = [
        f"{path.name}:{node.lineno}"
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    ]
    assert len(broad) <= MOST_BROAD, broad


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_tests_use_real_things(path: Path) -> None:
    names = {node.id for node in nodes(path) if isinstance(node, ast.Name)}
    names |= {argument.arg for function in functions(path) for argument in function.args.args}
    assert not names & {"Mock", "MagicMock", "AsyncMock", "mocker"}
    assert not {"unittest", "mock", "pytest_mock"} & set(third_party_imports(path))


def test_median_function_is_at_most_ten_lines() -> None:
    lines = sorted(f.end_lineno - f.lineno + 1 for path in MODULES for f in functions(path) if f.end_lineno)
    assert lines[len(lines) // 2] <= 10
    assert lines[len(lines) * 9 // 10] <= 40
