"""The built site: no warning, no dead link, nothing fetched from elsewhere, every public name in the reference."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
ZENSICAL = shutil.which("zensical", path=str(Path(sys.executable).parent))

pytestmark = pytest.mark.skipif(ZENSICAL is None, reason="needs the extra docs")


@dataclass
class Found(HTMLParser):
    """What a page can be linked at, where it links to, and what a browser loads for it."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("link", "script", "img", "source", "iframe"):
            self.loads += [given[name] for name in ("href", "src") if name in given]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built beside the checkout, of its files."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "examples", ".ci"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "zensical.toml", folder)
    done = subprocess.run([str(ZENSICAL), "build", "--strict"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Found]:
    found = {}
    for path in site.rglob("*.html"):
        if path.name != "404.html":  # shown at any address
            found[path] = Found()
            found[path].feed(path.read_text())
    return found


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Found]) -> None:
    assert len(pages) > 12
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.relative_to(site)} links to {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].ids, f"{path.relative_to(site)} links to {link}"


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Found]) -> None:
    for path, page in pages.items():
        outside = [address for address in page.loads if urlsplit(address).netloc]
        assert not outside, f"{path.relative_to(site)} loads {outside}"
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?https?:", style.read_text()), style.name


# The reference shows the module of that name in its place.
HIDDEN: set[str] = set()


@pytest.mark.parametrize(
    "place", ["", ".policies", ".methods", ".calibration", ".costs", ".evaluation", ".recommend", ".serve"]
)
def test_every_public_name_is_in_the_reference(pages: dict[Path, Found], place: str) -> None:
    module = importlib.import_module(f"fsgen_router{place}")
    ids = set().union(*(page.ids for page in pages.values()))
    names = {f"{module.__name__}.{name}" for name in module.__all__ if not name.startswith("_")}
    assert names - ids <= HIDDEN


def test_docstrings_are_markdown_by_then(site: Path) -> None:
    for path in (site / "reference").glob("*.html"):
        text = path.read_text()
        assert not re.findall(r":(?:class|meth|func|attr|mod|data):", text), path.name
        assert "::</p>" not in text, path.name
