"""The source itself: lint, types, what imports what, and the commands that the README promises."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "adapterlab"

# A file imports from its own floor or from those above it in this list, never from one below.
FLOORS = [
    ["", "errors"],
    ["registry", "search_space", "staging"],
    ["addresses", "anatomies", "backbones", "environment", "kernels"],
    ["adapters", "fingerprint", "token_rows", "token_files", "new_tokens"],
    ["guests"],
    ["heads", "sharding"],
    ["adapter_folder", "speed"],
    ["trainer_hooks"],
    ["attaching"],
    ["loading", "merging", "combining", "converting", "pretrained", "features"],
    ["chain", "serving"],
    ["tasks", "data"],
    ["recipe"],
    ["training"],
    ["predicting", "preparing"],
    ["pipeline", "deploy"],
    ["estimating", "sweeping"],
    ["cli", "__main__"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(file: Path) -> set[str]:
    """The parts of adapterlab that a file imports, `if TYPE_CHECKING` aside."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "adapterlab":
            parts = (node.module or "").split(".")
            names = [parts[1]] if len(parts) > 1 else [n.name if n.name in FLOOR else "" for n in node.names]
            found.update(names)
    return found


def test_imports_go_downwards_only():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        place = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if place == "__init__":
            continue  # the public names, fetched when touched
        wrong += [f"{file.relative_to(ROOT)} imports {name}" for name in imports(file) if FLOOR[name] > FLOOR[place]]
    assert not wrong


def test_no_part_is_missing_from_the_floors():
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name[0] not in "._"}
    assert parts - {"py.typed"} == set(FLOOR) - {""} - {"__main__"}


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_lint_and_types(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_importing_adapterlab_imports_nothing_heavy():
    code = "import sys, adapterlab; dir(adapterlab); print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "transformers", "peft", "numpy", "pydantic", "rich", "typer", "yaml"} & set(
        ast.literal_eval(done.stdout)
    )


def test_every_public_name_is_there_and_documented():
    import adapterlab

    assert set(adapterlab.__all__) <= set(dir(adapterlab))
    for name in adapterlab.__all__:
        assert getattr(adapterlab, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        adapterlab.atach  # noqa: B018


def test_public_names_survive_imports_of_the_modules_behind_them():
    code = (
        "import adapterlab, importlib, pkgutil\n"
        "for module in pkgutil.walk_packages(adapterlab.__path__, 'adapterlab.'):\n"
        "    module.name.endswith('__main__') or importlib.import_module(module.name)\n"
        "assert all(not hasattr(getattr(adapterlab, name), '__path__') for name in adapterlab.__all__)\n"
        "assert callable(adapterlab.methods) and callable(adapterlab.attach) and callable(adapterlab.run)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_ci_runs_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^[^#\n].*pytest.*$", script, re.M)
    assert len(commands) == 1
    assert commands[0] in readme


def test_a_wheel_holds_the_recipes_and_runs_without_the_checkout(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        f"import adapterlab; assert adapterlab.__file__.startswith({str(site)!r}), adapterlab.__file__\n"
        "from adapterlab.cli import main\n"
        "sys.argv = ['adapterlab', 'ls']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("quickstart", "classify/lora-bert", "classify/lora-gpt2"):
        assert name in done.stdout
