"""The rules of CONTRIBUTING.md that a machine can hold."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("bundle", "transforms", "scripts", "tests", "configs", "docs", ".ci")
MAX_FILES_OF_A_ROOM = 12
# Every room may import these. Scripts may import everything.
FLOOR = ("bundle.run", "bundle.distributed", "bundle.data.volumes.formats", "bundle.data.volumes.window")
# What each room may import of ours beside itself and the floor; the longest prefix decides.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "bundle": (),
    "bundle.api": ("bundle",),
    "bundle.run": (),
    "bundle.distributed": (),
    "bundle.networks": (),
    "bundle.losses": ("bundle.networks",),
    "bundle.inferers": (),
    "bundle.metrics": ("bundle.losses.perceptual",),
    "bundle.drawing": (),
    "bundle.viewing": ("bundle.drawing",),
    # run and the list of formats, which loads the others when it needs them, are below all rooms
    "bundle.data": (),
    "bundle.data.volumes": (),
    "bundle.data.dicom": ("bundle.data.volumes",),
    "bundle.data.store": ("bundle.data.volumes",),
    "bundle.data.patches": ("bundle.data.volumes", "bundle.data.store"),
    "bundle.data.cases": ("bundle.data.volumes", "bundle.data.dicom", "bundle.data.store"),
    "bundle.data.latents": tuple(f"bundle.data.{room}" for room in ("volumes", "cases", "store", "patches")),
    "bundle.archives": ("bundle.data", "bundle.networks"),
    "bundle.engines": ("bundle.losses", "bundle.inferers", "bundle.networks"),
    "bundle.checkpoints": ("bundle.engines", "bundle.networks"),
    "bundle.handlers": tuple(
        f"bundle.{room}"
        for room in ("checkpoints", "drawing", "engines", "losses", "metrics", "inferers", "networks")
    ),
    "bundle.emboli": ("bundle.data", "bundle.metrics"),
    "bundle.reports": ("bundle.emboli", "bundle.metrics", "bundle.drawing"),
    "bundle.evaluation": tuple(
        f"bundle.{room}"
        for room in (
            *("checkpoints", "data", "drawing", "emboli", "inferers", "losses", "metrics", "networks"),
            *("reports", "viewing"),
        )
    ),
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


def test_rooms_hold_at_most_12_files():
    folders = {path.parent for path in PRODUCT}
    counts = {name_of(folder): len(list(folder.glob("*.py"))) for folder in folders}

    assert {name: count for name, count in counts.items() if count > MAX_FILES_OF_A_ROOM} == {}


def test_imports_run_one_way():
    offenders = [
        f"{name_of(path)} imports {name}"
        for path in PRODUCT
        if "scripts" not in path.parts
        for name in forbidden_imports(path)
    ]

    assert offenders == []


def forbidden_imports(path: Path) -> list[str]:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    room = max((room for room in MAY_IMPORT if is_below(module, room)), key=len)
    allowed = (room, *FLOOR, *MAY_IMPORT[room])
    ours = [
        name for name in imported_modules(path) if name.split(".")[0] in ("bundle", "transforms", "scripts")
    ]
    return [name for name in ours if not any(is_below(name, parent) for parent in allowed)]


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative imports hide where a name comes from"
            yield node.module or ""


def is_below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def test_what_a_function_does_begins_with_a_verb():
    """In the third person, such as `Returns`, so its last letter is an s."""
    offenders = [
        f"{name_of(path)}: {node.name}: {said.splitlines()[0]}"
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (said := ast.get_docstring(node))
        and not said.split()[0].rstrip(".,:;").endswith("s")
    ]

    assert offenders == []


def test_no_file_is_called_utils():
    assert [name_of(path) for path in PYTHON if "util" in path.stem] == []


def test_docs_hold_no_readme_because_hugging_face_would_publish_it_instead_of_the_root_one():
    assert not (ROOT / "docs" / "README.md").exists()


def test_packages_hold_one_docstring_in_their_init_file():
    inits = [path for path in PRODUCT if path.name == "__init__.py" and path.parent != ROOT / "bundle"]
    trees = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in inits}

    assert [name for name, tree in trees.items() if len(tree.body) != 1 or not ast.get_docstring(tree)] == []
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_importing_the_bundle_imports_nothing_else_until_its_api_is_asked_for():
    tree = ast.parse((ROOT / "bundle" / "__init__.py").read_text(encoding="utf-8"))
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]

    assert [ast.unparse(node) for node in at_import] == ["import importlib", "from typing import Any"]


def test_no_file_names_a_private_machine_or_a_registry():
    offenders = [
        f"{name_of(path)}: {pattern}"
        for path in TEXTS
        for pattern in PRIVATE
        if re.search(pattern, path.read_text(encoding="utf-8"))
    ]

    assert offenders == []
