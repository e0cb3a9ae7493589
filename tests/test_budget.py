"""The rules of CONTRIBUTING.md that a machine can hold."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bundle", "transforms", "scripts", "tests", "configs", "docs", ".ci")
# What each room may import of ours beside itself; the longest prefix decides. Scripts may import everything.
MAY_IMPORT = {
    "bundle": (),
    "bundle.networks": (),
    "bundle.losses": ("bundle.networks",),
    "bundle.engines": ("bundle.losses", "bundle.inferers", "bundle.networks"),
    "bundle.handlers": tuple(
        f"bundle.{room}" for room in ("engines", "losses", "metrics", "inferers", "networks")
    ),
    "bundle.inferers": (),
    "bundle.metrics": ("bundle.losses.perceptual",),
    "bundle.data": (),
    "transforms": ("bundle.data",),
}
# Written in pieces, so that this file does not find itself.
PRIVATE = [
    r"/(?:work|root)/\w",
    r"/(?:home|Users)/\w",
    r"/workspace/\w",
    r"index[-_]url",
    r"py(?:pi\.org|thonhosted)",
]


def files(*suffixes: str) -> list[Path]:
    below = [path for room in ROOMS for path in (ROOT / room).rglob("*")]
    found = [path for path in [*below, *ROOT.iterdir()] if path.is_file() and "__pycache__" not in path.parts]
    return sorted(path for path in found if not suffixes or path.suffix in suffixes)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PYTHON = files(".py")
TEXTS = files(".py", ".md", ".yaml", ".json", ".toml", ".conf", ".sh", ".txt")
TEXTS += [ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / ".gitignore"]
PRODUCT = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in ("bundle", "transforms", "scripts")]


@pytest.mark.parametrize("path", [*PYTHON, *files(".sh")], ids=name_of)
def test_files_stay_below_250_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 250


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_functions_stay_below_40_lines_without_their_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    assert {node.name: length for node in functions if (length := body_length(node)) >= 40} == {}


def body_length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    docstring = 0
    if ast.get_docstring(node) is not None:
        docstring = (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return node.end_lineno - node.lineno + 1 - docstring


@pytest.mark.parametrize("path", [path for path in PRODUCT if "scripts" not in path.parts], ids=name_of)
def test_imports_run_one_way(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    room = max((room for room in MAY_IMPORT if is_below(module, room)), key=len)
    allowed = (room, *MAY_IMPORT[room])
    ours = [
        name for name in imported_modules(path) if name.split(".")[0] in ("bundle", "transforms", "scripts")
    ]

    assert [name for name in ours if not is_allowed(name, room, allowed)] == []


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative imports hide where a name comes from"
            yield node.module or ""


def is_below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def is_allowed(name: str, room: str, allowed: tuple[str, ...]) -> bool:
    # Files directly in bundle/ may import each other, but none of the rooms below it.
    if room == "bundle":
        return name.count(".") == 1 and not (ROOT / Path(*name.split("."))).is_dir()
    return any(is_below(name, parent) for parent in allowed)


def test_no_file_is_called_utils():
    assert [name_of(path) for path in PYTHON if "util" in path.stem] == []


def test_docs_hold_no_readme_because_hugging_face_would_publish_it_instead_of_the_root_one():
    assert not (ROOT / "docs" / "README.md").exists()


def test_packages_hold_one_docstring_in_their_init_file():
    inits = [path for path in PRODUCT if path.name == "__init__.py"]
    trees = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in inits}

    assert [name for name, tree in trees.items() if len(tree.body) != 1 or not ast.get_docstring(tree)] == []
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_no_file_names_a_private_machine_or_a_registry(path):
    text = path.read_text(encoding="utf-8")

    assert [pattern for pattern in PRIVATE if re.search(pattern, text)] == []
