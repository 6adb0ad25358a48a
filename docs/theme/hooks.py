"""What the site needs beyond the pages as they lie: links that lead out of `docs`, and a page for each package.

mkdocs calls these functions by their names.
"""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent.parent
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+://|#)([^)\s#]+)[^)\s]*\)")


def on_files(files: Any, config: Any) -> Any:
    """Add a page of reference for each package that names what is public."""
    pages = {}
    for module, names in public().items():
        uri = f"reference/api/{module.replace('.', '-')}.md"
        entries = "\n\n".join(f"::: {module}.{name}" for name in names)
        files.append(File.generated(config, uri, content=f"# {module}\n\n{entries}\n"))
        pages[module] = Path(uri).name
    index = files.get_file_from_path("reference/index.md")
    content = index.content_string
    files.remove(index)
    listed = "\n".join(f"- [{module}](api/{name})" for module, name in pages.items())
    files.append(File.generated(config, index.src_uri, content=f"{content}\n{listed}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> str:
    """Links to files that are not part of the site become the names of those files."""
    folder = posixpath.dirname(page.file.src_uri)

    def kept_or_named(link: re.Match[str]) -> str:
        uri = posixpath.normpath(posixpath.join(folder, link[2]))
        there = files.get_file_from_path(uri)
        if there is not None and there.inclusion.is_included():
            return link[0]
        target = (ROOT / "docs" / uri).resolve()
        return f"{link[1]} (`{target.relative_to(ROOT)}`)" if target.is_relative_to(ROOT) else link[0]

    return LINK.sub(kept_or_named, markdown)


def public() -> dict[str, list[str]]:
    """The public names of each package of the project, read from its `__all__`."""
    found = {}
    for path in [ROOT / "circuits" / "__init__.py", *sorted((ROOT / "circuits").glob("*/__init__.py"))]:
        names = _declared(path)
        if names:
            found[".".join(path.parent.relative_to(ROOT).parts)] = names
    return {**found, "tasks": _declared(ROOT / "tasks" / "__init__.py")}


def _declared(path: Path) -> list[str]:
    """The texts in a module's `__all__`, where it is a plain list."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
            return [
                e.value
                for e in ast.walk(node.value)
                if isinstance(e, ast.Constant) and isinstance(e.value, str)
            ]
    return []
