"""Hook of MkDocs: the site shows README.md and every file of the repository that a page links to.

So the same links work in a checkout, on a host of repositories and on the site, and a link to a
file that is not there fails a strict build.
"""

from __future__ import annotations

import logging
import os.path
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
DOCS = "docs"
OWN_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages that lie beside docs/."""

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".cpp": "cpp", ".cu": "cpp"}

log = logging.getLogger("mkdocs.hooks.docs_site")


def site_path(path: str) -> str:
    """Return where the site has a file of the repository, relative to its root."""
    if path in OWN_PAGES:
        return OWN_PAGES[path]
    folder, _, rest = path.partition("/")
    return rest if folder == DOCS else f"files/{path}.md"


def sources() -> Iterator[str]:
    """Yield every page that the repository has, relative to its root."""
    yield from OWN_PAGES
    yield from sorted(f"{DOCS}/{path.name}" for path in (ROOT / DOCS).glob("*.md"))


def outside_fences(text: str) -> list[str]:
    """Split a page; the odd parts are blocks of code."""
    return FENCE.split(text)


def linked(text: str, source: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to."""
    for part in outside_fences(text)[::2]:
        for match in LINK.finditer(part):
            yield os.path.normpath(os.path.join(os.path.dirname(source), match[1]))


def rewritten(text: str, source: str) -> str:
    """Return a page with its links as the site needs them."""
    here = os.path.dirname(site_path(source))

    def link(match: re.Match) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(source), match[1]))
        return f"]({os.path.relpath(site_path(path), here)}{match[2] or ''})"

    parts = outside_fences(text)
    parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts)


def shown(path: str) -> str:
    """Return a page that shows a file, or lists a folder."""
    found = ROOT / path
    if found.is_dir():
        return f"# {path}\n\n" + "\n".join(f"* `{entry.name}`" for entry in sorted(found.iterdir()))
    language = LANGUAGES.get(found.suffix, "text")
    return f"# {path}\n\n````{language}\n{found.read_text()}\n````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages beside docs/, and a page for every file that is linked."""
    pages = {source: (ROOT / source).read_text() for source in sources()}
    for source, text in pages.items():
        known = files.get_file_from_path(site_path(source))
        if known is not None:
            files.remove(known)
        page = rewritten(text, source)
        files.append(File.generated(config, site_path(source), content=page))
    for path in sorted({path for source, text in pages.items() for path in linked(text, source)}):
        if not (ROOT / path).exists():
            log.warning("a page links to %s, which is not there", path)
        elif path not in pages and not path.startswith(f"{DOCS}/"):
            file = File.generated(config, site_path(path), content=shown(path))
            file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
    return files
