"""What the site has beside `docs/`: the README, the public functions and classes, and the scripts that pages link to.

Hooks of MkDocs, named in `mkdocs.yml`.
"""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SCRIPTS = ("examples", "benchmarks", "notebooks")
_LINK = re.compile(r"\]\(([^)\s#:]+)([^)\s]*)\)")
API = """# Functions and classes

What is public. `from waterfill import NAME` takes what has no module before its name.
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of results, which benchmarks add to, into the navigation."""
    names = sorted(path.stem for path in (CHECKOUT / "docs" / "results").glob("*.md") if path.stem != "README")
    results: list[Any] = [{"All results": "results/README.md"}]
    results += [{name.replace("_", " ").capitalize(): f"results/{name}.md"} for name in names]
    config.nav = [{"Results": results} if entry == {"Results": "RESULTS"} else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in `docs/`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(CHECKOUT / source).read_text("utf-8")))
    files.append(File.generated(config, "api.md", content=api()))
    for folder in SCRIPTS:
        for path in sorted((CHECKOUT / folder).rglob("*")):
            if path.suffix in (".py", ".ipynb"):
                name = path.relative_to(CHECKOUT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where their file is on the site."""
    source = next((old for old, new in PAGES.items() if new == page.file.src_uri), f"docs/{page.file.src_uri}")

    def moved(found: re.Match[str]) -> str:
        target = (CHECKOUT / source).parent / found[1]
        if not target.resolve().is_relative_to(CHECKOUT):
            return found[0]
        place = site_path(target.resolve().relative_to(CHECKOUT))
        return f"]({relative(place, page.file.src_uri)}{found[2]})"

    return _LINK.sub(moved, markdown)


def site_path(path: Path) -> str:
    """Where a file of the checkout is among the sources of the site."""
    name = path.as_posix()
    if name in SCRIPTS:
        return "recipes.md"  # a page that shows them
    return PAGES.get(name, name.removeprefix("docs/"))


def relative(place: str, page: str) -> str:
    """The link from a page to a place."""
    return "../" * page.count("/") + place


def api() -> str:
    """The page of public names, by module, from what the package says is public."""
    sys.path.insert(0, str(CHECKOUT / "src"))
    waterfill = importlib.import_module("waterfill")
    homes = {name: f"waterfill.{waterfill._HOME[name]}.{name}" for name in waterfill.__all__}
    lines = [API, "## waterfill", *(directive(name, home) for name, home in sorted(homes.items(), key=_by_kind))]
    for module in ("learn", "runtime", "hf"):
        found = importlib.import_module(f"waterfill.{module}")
        lines.append(f"## waterfill.{module}")
        for name in found.__all__:
            home = getattr(found, name).__module__
            lines.append(directive(f"{module}.{name}", f"{home}.{name}"))
    lines += ["## Engines", directive("Engine", "waterfill.compression.engine.engine.Engine")]
    lines += [directive("answer", "waterfill.compression.engine.engine.answer")]
    lines += ["## waterfill.errors", "::: waterfill.errors\n    options:\n      show_root_heading: false\n"]
    return "\n\n".join(lines)


def directive(name: str, home: str) -> str:
    """What mkdocstrings makes a description of."""
    return f"::: {home}\n    options:\n      heading: {name}\n      toc_label: {name}\n"


def _by_kind(pair: tuple[str, str]) -> tuple[bool, str]:
    """Functions before classes, each by name."""
    return pair[0][0].isupper(), pair[0]
