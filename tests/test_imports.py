"""The house rules about imports: one direction, and nothing heavy before it is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bmex_bids"

# A module imports from its own layer or from those below it.
LAYERS = (
    ("cli", "weights_cli"),
    ("run",),
    ("cluster",),
    ("spacejobs",),
    ("start", "executor", "resources", "status"),
    ("jobs", "options"),
    ("plan", "pipeline", "report", "group"),
    ("groupspaces",),
    ("grouppage", "grouptables"),
    ("groupsections",),
    ("groupfigures", "groupcharts", "groupglance", "groupmeasures"),
    ("groupdrawing",),
    ("groupharmony", "groupfeatures", "groupruns"),
    ("groupcombat", "groupclassifier", "grouphistograms", "groupstats"),
    ("cohort", "pictures", "sprites"),
    ("spacefiles",),
    ("derivatives", "figures", "plots", "rendering", "measures", "strips", "commonscale"),
    ("templatefiles",),
    ("spaces",),
    ("weights", "published", "layout", "validation", "age", "participants", "tables"),
    ("bids",),
    ("image",),
    ("brainmask", "inference", "claims", "logs", "memory"),
    ("spatial", "intensity", "metrics", "ghosts", "registration", "tiles", "duncan", "mixture"),
    ("networks",),
    ("similar",),
)
RANK = {module: rank for rank, modules in enumerate(LAYERS) for module in modules}
ARRAYS = {
    *("brainmask", "inference", "spatial", "intensity", "metrics", "networks", "registration"),
    *("tiles", "duncan", "similar", "mixture", "ghosts"),
}
BESIDE = {"training", "evaluation"}  # packages that use the array layers, and that no one uses
# Imported by --help or by the plan, so these wait for what is slow.
LIGHT = {
    "cli",
    "run",
    "start",
    "jobs",
    "executor",
    "cluster",
    "resources",
    "claims",
    "logs",
    "memory",
    "status",
    "options",
    "plan",
    "layout",
    "validation",
    "age",
    "tables",
    "participants",
    "spaces",
    "templatefiles",
    "spacejobs",
    "bids",
}
LIGHT |= {"__init__", "weights"}
SLOW = {
    "torch",
    "nibabel",
    "bids",
    "SimpleITK",
    "matplotlib",
    "scipy",
    "pandas",
    "skimage",
    "numpy",
    "dask",
    "distributed",
    "dask_jobqueue",
    "dipy",
    "templateflow",
    "requests",
}
FORBIDDEN_IN_ARRAYS = {"pathlib", "logging", "os", "io", "shutil", "tempfile", "bids"}

MODULES = sorted(PACKAGE.glob("*.py"))


def imports_of(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Yield the dotted names of what a module imports, ``from bmex_bids import x`` as two."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if not top_level else _executed(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = path.parent.relative_to(PACKAGE.parent).parts
                inside = inside[: len(inside) - node.level + 1]
                base = ".".join([*inside, base] if base else inside)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs on import: no function bodies, no ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not checking and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from _executed(node)


def own_modules(names: Iterator[str]) -> set[str]:
    parts = [name.split(".") for name in names if name.startswith("bmex_bids.")]
    return {part[1] for part in parts if part[1] in RANK or part[1] in BESIDE}


def test_every_module_has_its_layer() -> None:
    assert {path.stem for path in MODULES} - {"__init__"} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_go_one_way(path: Path) -> None:
    used = own_modules(imports_of(path))
    assert not used & BESIDE
    upward = {name for name in used if RANK[name] < RANK.get(path.stem, -1)}
    assert not upward, f"{path.stem} imports {sorted(upward)}, which lie above it"


def test_no_circles() -> None:
    graph = {path.stem: own_modules(imports_of(path)) - {path.stem} for path in MODULES}
    done: set[str] = set()
    while ready := {name for name, used in graph.items() if name not in done and used <= done}:
        done |= ready
    assert set(graph) == done, f"a circle among {sorted(set(graph) - done)}"


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_array_layers_know_no_files(name: str) -> None:
    used = {imported.split(".")[0] for imported in imports_of(PACKAGE / f"{name}.py")}
    assert not used & FORBIDDEN_IN_ARRAYS
    assert own_modules(imports_of(PACKAGE / f"{name}.py")) <= ARRAYS


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_light_modules_import_nothing_slow(name: str) -> None:
    names = list(imports_of(PACKAGE / f"{name}.py", top_level=True))
    assert not {imported.split(".")[0] for imported in names} & SLOW
    assert own_modules(iter(names)) <= LIGHT


@pytest.mark.parametrize("package", sorted(BESIDE))
def test_beside_packages_use_the_array_layers_only(package: str) -> None:
    for path in (PACKAGE / package).rglob("*.py"):
        used = own_modules(imports_of(path)) - {package}
        allowed = ARRAYS | {"image", "weights", "bids"}
        if package == "training":  # bmex-train finds scans as the app does
            allowed |= {"plan", "layout", "age", "tables", "published"}
        allowed |= {"cli"} if path.stem == "demo" else set()  # runs the app as a user does
        if package == "evaluation":  # has commands of its own, on BIDS datasets
            allowed |= {"layout", "rendering", "groupstats", "commonscale"}
        assert used <= allowed | BESIDE, f"{path.name} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_habits(path: Path) -> None:
    """No assert; a broad except only where it raises again, and the one of the loop over runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    broad = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in ("Exception", "BaseException"))
        and not isinstance(node.body[-1], ast.Raise)
    ]
    assert len(broad) <= (path.stem == "jobs"), f"lines {broad}"
