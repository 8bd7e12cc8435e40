"""Imports go one way, and only three files know the outside services and the configuration."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dense_retrieval"
LAYERS = [
    ["records", "progress", "batching", "executor", "processes", "ray_executor", "matmul", "losses"],
    [
        "stage",
        "store",
        "files",
        "memo",
        "schemas",
        "config",
        "scale",
        "resident",
        "checks",
        "errors",
        "folders",
        "help",
        "tracking",
        "hub",
        "sentence_folder",
        "sweep",
        "ranks",
    ],
    ["corpus"],
    ["queries"],
    ["student"],
    ["candidates"],
    ["teacher"],
    ["groups"],
    ["training"],
    ["evaluation"],
    ["nodes"],
    ["hardware"],
    ["models"],
    ["views"],
    ["synthetic"],
    ["prepare"],
    ["pipeline"],
    ["needed"],
    ["budget"],
    ["chain"],
    ["forecast"],
    ["plan", "comparison", "follow"],
    ["results"],
    ["run", "generate", "compare", "cache", "search", "on_ray"],
    ["parity"],
    ["bulk"],
    ["export", "index"],
    ["evaluate", "mteb"],
    ["__main__"],
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
CONFIGURED = (
    "run.py",
    "search.py",
    "export.py",
    "index.py",
    "compare.py",
    "generate.py",
    "pipeline.py",
    "nodes.py",
    "hardware.py",
    "models.py",
    "views.py",
    "prepare.py",
    "synthetic.py",
    "chain.py",
    "follow.py",
    "comparison/runs.py",
    "comparison/settings.py",
    "schemas/",
    "config.py",
    "scale.py",
    "checks.py",
    "errors.py",
    "evaluate.py",
    "folders.py",
    "help.py",
    "mteb.py",
    "needed.py",
    "teacher/train.py",
)


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def part(module: str) -> str | None:
    """The top-level part of the package that a dotted name belongs to."""
    names = module.split(".")
    return names[1] if names[0] == "dense_retrieval" and len(names) > 1 and names[1] in LAYER else None


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported(file):
        other = part(module)
        if other is None or other == own:
            continue
        within = LAYER[other] == LAYER[own] <= 1  # the two lowest layers may import among themselves
        assert LAYER[other] < LAYER[own] or within, f"{own} imports {module}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_configuration_and_services_have_one_place(file):
    relative = str(file.relative_to(PACKAGE))
    roots = {module.split(".")[0] for module in imported(file)}
    assert "wandb" not in roots or relative == "tracking.py"
    instantiates = {m for m in imported(file) if m.startswith("hydra")} == {
        "hydra.utils",
        "hydra.utils.instantiate",
    }
    assert not roots & {"hydra", "omegaconf"} or relative.startswith(CONFIGURED) or instantiates


def test_every_part_has_a_layer():
    parts = {f.relative_to(PACKAGE).parts[0].removesuffix(".py") for f in FILES}
    assert parts <= set(LAYER)
