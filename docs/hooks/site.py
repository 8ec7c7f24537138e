"""What mkdocs cannot do by itself: pages from outside docs/, and links to files that are no pages.

Documents link to each other as files of the repository, so that the links work where the repository is read. In the
site, a document from elsewhere is a page of its own (`ELSEWHERE`), and any other file or folder that is linked to
becomes a page that shows it.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file by its path alone
from configuration_tables import fill_tables

ROOT = Path(__file__).resolve().parents[2]
# Page of the site -> document of the repository.
ELSEWHERE = {
    "index.md": "README.md",
    "kernels.md": "kernels/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)((?:#[^)\s]*)?)(?=\))")
_DRAWING = re.compile(r"!\[[^\]]*\]\(([\w/]+\.svg)\)")
_LANGUAGES = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".yaml": "yaml", ".json": "json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents from elsewhere, and a page for each file or folder that any document links to."""
    for name, origin in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / origin)))
    shown: dict[str, str] = {}
    for file in files.documentation_pages():
        for target, _ in _LINK.findall(file.content_string):
            path = _in_repository(target, file.src_uri)
            if path is not None and not _is_page(path) and (ROOT / path).exists():
                shown[_page_of(path)] = path
    for name, path in shown.items():
        files.append(File.generated(config, name, content=_listing(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV))
    _complete_navigation(config.nav, files)
    return files


def _complete_navigation(nav: list[Any] | None, files: Files) -> None:
    """A page that the navigation does not name stands at the end of the guides, or of the results."""
    if nav is None:
        return
    sections = {title: pages for part in nav for title, pages in part.items() if isinstance(pages, list)}
    named = re.findall(r"[\w/]+\.md", str(nav))
    for file in files.documentation_pages(inclusion=InclusionLevel.is_in_nav):
        if file.src_uri not in named:
            sections["Results" if file.src_uri.startswith("results/") else "Guides"].append(file.src_uri)


def on_page_markdown(markdown: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables of keys, and turn links to files of the repository into links to their pages."""

    def rewrite(link: re.Match[str]) -> str:
        path = _in_repository(link[1], page.file.src_uri)
        if path is None or not (ROOT / path).exists():
            return link[0]  # mkdocs tells the ones that lead nowhere
        return posixpath.relpath(_page_of(path), posixpath.dirname(page.file.src_uri) or ".") + link[2]

    return _LINK.sub(rewrite, _DRAWING.sub(_inline, fill_tables(markdown)))


def _inline(image: re.Match[str]) -> str:
    """A drawing in the page itself: as an image it would not see whether the page is light or dark."""
    drawing = (ROOT / "docs" / image[1]).read_text(encoding="utf-8")
    return f"<div>\n{drawing}</div>\n"


def _in_repository(target: str, page: str) -> str | None:
    """The path of a link's target from the root of the repository; None for an address elsewhere."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    folder = posixpath.dirname(ELSEWHERE.get(page, f"docs/{page}"))
    return posixpath.normpath(posixpath.join(folder, target))


def _is_page(path: str) -> bool:
    return path in ELSEWHERE.values() or path.startswith("docs/")


def _page_of(path: str) -> str:
    """The source name of the page of a file of the repository."""
    for name, origin in ELSEWHERE.items():
        if origin == path:
            return name
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def _listing(path: Path) -> str:
    """A page that shows a file, or the files of a folder one below the other."""
    name = path.relative_to(ROOT)
    if path.is_file():
        return f"# `{name}`\n\n{_code(path)}"
    parts = (f"## `{file.relative_to(path)}`\n\n{_code(file)}" for file in sorted(path.rglob("*")) if file.is_file())
    return f"# `{name}/`\n\n" + "\n".join(parts)


def _code(path: Path) -> str:
    return f"````{_LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8').rstrip()}\n````\n"
