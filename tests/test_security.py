"""Nothing that comes from data or checkpoints is ever run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = sorted(path for room in ("bundle", "transforms", "scripts") for path in (ROOT / room).rglob("*.py"))
FORBIDDEN = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {
    "pickle": {"load", "loads", "Unpickler"},
    "dill": {"load", "loads"},
    "joblib": {"load"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "os": {"system", "popen"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "yaml": {"load", "unsafe_load", "full_load"},
}


def dangers(source: str) -> Iterator[str]:
    """Calls in a program that would run, or unpickle, what they are given."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in FORBIDDEN_METHODS:
            names = {alias.name for alias in node.names} & FORBIDDEN_METHODS[node.module]
            yield from (f"line {node.lineno}: from {node.module} import {name}" for name in names)
        if isinstance(node, ast.Call):
            yield from (f"line {node.lineno}: {what}" for what in dangers_of_call(node))


def dangers_of_call(call: ast.Call) -> Iterator[str]:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    name = ast.unparse(call.func)
    owner, _, method = name.rpartition(".")
    if name in FORBIDDEN or method in FORBIDDEN_METHODS.get(owner, ()):
        yield name
    if "shell" in keywords and ast.unparse(keywords["shell"]) != "False":
        yield f"{name} with a shell"
    if name in ("torch.load", "torch.jit.load") and not is_true(keywords.get("weights_only")):
        yield f"{name} without weights_only"
    if method in ("load", "fromfile") and owner in ("np", "numpy") and is_true(keywords.get("allow_pickle")):
        yield f"{name} with pickle"


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def test_no_code_of_the_product_runs_what_it_reads():
    found = {path.relative_to(ROOT).as_posix(): list(dangers(path.read_text("utf-8"))) for path in PRODUCT}

    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "exec(text)",
        "pickle.load(file)",
        "from pickle import loads",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=anything)",
        "os.system(command)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert len(list(dangers(source))) == 1


def test_the_search_lets_harmless_code_pass():
    harmless = (
        "model.eval()\nnetwork.compile()\ntorch.load(p, weights_only=True)\njson.load(f)\nre.compile('a')"
    )
    assert list(dangers(harmless)) == []


def test_the_readme_says_that_configs_run_code():
    assert "Run only configs that you trust: a MONAI config runs code" in (ROOT / "README.md").read_text(
        encoding="utf-8"
    )
