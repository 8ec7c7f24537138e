"""The site builds without a warning, and reading it asks no other host for anything."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")


def build(folder: Path, configuration: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]  # --quiet would hide the warnings from --strict
    return subprocess.run(
        [*command, "--config-file", configuration, "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = build(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


class Page(HTMLParser):
    """What a page names, points to and loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values["id"] or ""} if "id" in values else set()
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
        elif tag in ("script", "img", "link", "iframe", "object") and values.get("rel") != "canonical":
            self.loaded.append(values.get("src") or values.get("href") or values.get("data") or "")


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 12
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            found = (path.parent / target).resolve() if target else path
            assert found.exists(), f"{path.name} links to {link}"
            assert not anchor or anchor == "__skip" or anchor in pages[found].anchors, f"{path.name} links to {link}"


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert [address for address in Page(path).loaded if "//" in address] == [], path.name


def test_documents_from_elsewhere_and_linked_files_have_pages(site: Path) -> None:
    for name in ("kernels", "changelog", "contributing", "source/launch_scripts"):
        assert (site / f"{name}.html").exists()
    assert "SLURM_JOB_NODELIST" in (site / "source" / "launch_scripts.html").read_text()


@pytest.mark.parametrize("broken", ["[a](nowhere.md)", "[a](design.md#nowhere)", "[a](../nowhere.py)"])
def test_a_broken_link_ends_the_build(broken: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "design.md").write_text(f"# Design\n\n{broken}\n")
    values = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    values |= {"docs_dir": str(tmp_path / "docs"), "hooks": [str(ROOT / "docs/hooks/site.py")], "theme": "mkdocs"}
    values |= {"nav": None, "plugins": []}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(values))
    result = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert result.returncode != 0
    assert "nowhere" in result.stdout + result.stderr
