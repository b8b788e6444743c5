"""The recipes that ship with the package, and how a name or a path leads to a recipe file."""

from __future__ import annotations

from pathlib import Path

from adapterlab.errors import ConfigError, did_you_mean

SUFFIXES = (".yaml", ".yml", ".json")


def folder() -> Path:
    """Return the folder of the shipped recipes: inside the package when installed, beside it in a checkout.

    Raises:
        ConfigError: neither is there; the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    inside, beside = package / "recipes", package.parent / "recipes"
    if inside.is_dir():
        return inside
    # A wheel unpacked without its recipes must not pick up some other project's `recipes` in site-packages.
    if beside.is_dir() and (package.parent / "pyproject.toml").is_file():
        return beside
    raise ConfigError(
        f"the shipped recipes are missing ({inside}); reinstall: pip install --force-reinstall adapterlab"
    )


def shipped() -> dict[str, Path]:
    """Return the shipped recipes by name (`quickstart`, `classify/lora-bert`), the top level first."""
    root = folder()
    files = sorted(root.rglob("*.yaml"), key=lambda file: (len(file.relative_to(root).parts), file))
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in files}


def find(name_or_path: str | Path) -> Path:
    """Return the file that a path or a shipped name stands for; an existing file comes first.

    Raises:
        ConfigError: there is no such file and no such shipped recipe.
    """
    given = str(name_or_path)
    path = Path(given).expanduser()
    if path.is_file():
        return path
    catalog = shipped()
    name = given.removesuffix(".yaml")
    if name in catalog:
        return catalog[name]
    if path.is_dir():
        inner = path / "recipe.yaml"
        if inner.is_file():
            raise ConfigError(f"'{given}' is a run folder; its recipe is {inner}")
        raise ConfigError(f"'{given}' is a folder; give a recipe file in it.{_listing(path)}")
    nearest = did_you_mean(given, [*catalog, *_beside(path)])
    where = f" There is no file {path}." if path.suffix in SUFFIXES else ""
    raise ConfigError(
        f"no recipe '{given}'.{where}{nearest} Shipped: {', '.join(catalog)}. "
        "Or give the path of a YAML file; `adapterlab cp quickstart` writes one to start from."
    )


def _beside(path: Path) -> list[str]:
    """Name the recipe files in the folder in which `path` would be, as the user would have to write them."""
    if not path.parent.is_dir():
        return []
    return [str(path.parent / file.name) for file in sorted(path.parent.iterdir()) if file.suffix in SUFFIXES]


def _listing(path: Path) -> str:
    names = [str(path / file.name) for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    return f" There: {', '.join(names[:8])}." if names else ""
