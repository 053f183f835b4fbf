"""Puts together what the site is built of, in a folder: `python docs/site/stage.py build/docs`.

Pages keep the paths that they have in the repository, so that a link works on a forge and on the site. A page that is named in backticks,
as in `docs/use.md`, becomes a link, and what pages link to beside each other (pictures, programs) is copied. A page that is no part of the
navigation, or a link to a file that is not there, ends this with an error.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?\)")
NAMED = re.compile(r"(?<!\[)`((?:\.\./)*(?:docs/)?[\w/-]+\.md)`(?!\])")
FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)


def pages_of(nav: list[Any]) -> Iterator[str]:
    """Yield the pages of a navigation."""
    for item in nav:
        if isinstance(item, str):
            yield item
        else:
            for inside in item.values():
                yield from pages_of(inside if isinstance(inside, list) else [inside])


def staged(page: str, pages: set[str]) -> tuple[str, set[str]]:
    """Return the text of a page for the site, and what it links to that is no page."""
    folder = Path(page).parent
    others: set[str] = set()

    def relative(name: str) -> str:
        return os.path.relpath(name, folder)

    def target(link: str) -> str:
        return os.path.normpath(folder / link)

    def linked(match: re.Match[str]) -> str:
        for name in (match[1], target(match[1])):
            if name in pages:
                return f"[`{match[1]}`]({relative(name)})"
        return match[0]

    def checked(match: re.Match[str]) -> str:
        if "://" in match[2] or match[2].startswith("mailto:"):
            return match[0]
        name = target(match[2])
        if not (REPOSITORY / name).exists():
            sys.exit(f"{page}: there is no file {name}, which it links to")
        if name not in pages:
            others.add(name)
        return match[0]

    text = (REPOSITORY / page).read_text(encoding="utf-8")
    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(checked, NAMED.sub(linked, part)) for part in parts), others


def main(folder: Path) -> None:
    """Write the config, all pages and what they link to into a folder, which is emptied first."""
    config = (HERE / "zensical.toml").read_text(encoding="utf-8")
    decisions = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs/decisions").glob("*.md"))
    config = config.replace('"DECISIONS"', ", ".join(f'"{name}"' for name in decisions))
    pages = set(pages_of(tomllib.loads(config)["project"]["nav"]))
    written = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md")}
    if missing := (written - pages) | {page for page in pages if not (REPOSITORY / page).is_file()}:
        sys.exit(f"docs/site/zensical.toml and the pages do not agree on: {', '.join(sorted(missing))}")
    shutil.rmtree(folder, ignore_errors=True)
    for page in sorted(pages):
        text, others = staged(page, pages)
        place = folder / "source" / page
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        for name in others:
            copy(REPOSITORY / name, folder / "source" / name)
    (folder / "zensical.toml").write_text(config, encoding="utf-8")


def copy(source: Path, place: Path) -> None:
    """Copy a file, or the list of a folder's files, for a link to it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, place)
    else:
        place.mkdir(exist_ok=True)
        names = "\n".join(f"- [{path.name}]({path.name})" for path in sorted(source.iterdir()) if path.is_file())
        (place / "index.md").write_text(f"# {source.name}\n\n{names}\n", encoding="utf-8")
        for path in source.iterdir():
            if path.is_file():
                shutil.copyfile(path, place / path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
