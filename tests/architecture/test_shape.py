"""The shape that reviewers would otherwise have to watch: sizes, names, documents."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from syntax import syntax_tree

ROOT = Path(__file__).parents[2]
PACKAGES = ["contract", "packager", "runtime", "fleet", "cli"]
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 600


def functions(path: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            found.append((node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1))
    return found


def test_modules_are_short():
    long = {p: n for p in MODULES if (n := len(p.read_text().splitlines())) > MAX_MODULE_LINES}
    assert not long


def test_functions_are_short():
    sizes = [(size, name, path) for path in MODULES for name, size in functions(path)]
    assert not [row for row in sizes if row[0] > MAX_FUNCTION_LINES]
    assert sorted(size for size, _, _ in sizes)[len(sizes) // 2] <= 10


def test_no_drawers():
    assert not [p for p in MODULES if re.search(r"util|helper|common|misc|manager", p.stem)]


def test_every_package_is_typed():
    assert all((ROOT / name / f"edgepack_{name}" / "py.typed").exists() for name in PACKAGES)


@pytest.mark.parametrize(
    "name",
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"],
)
def test_documents_exist(name):
    assert len((ROOT / name).read_text(encoding="utf-8")) > 400


def test_committed_files_name_no_registry_and_no_machine():
    pattern = r'"resolved": *"https?://|--(extra-)?index-url[ =]+http|deb +https?://|/root/'
    found = subprocess.run(
        ["git", "grep", "-nIE", pattern, "--", ".", f":!{Path(__file__).relative_to(ROOT)}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode in (1, 128), found.stdout


def test_documents_name_tests_that_exist():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {
        found
        for document in documents
        for found in re.findall(r"tests/[a-z0-9_/]+(?:\.py)?", document.read_text("utf-8"))
    }
    assert named
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]
