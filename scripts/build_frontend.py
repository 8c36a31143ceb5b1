"""Builds the page: content-hashed names, rewritten references, gzip copies; no Node needed.

    python scripts/build_frontend.py --out DIR

Every file of the source folder goes to DIR/assets/<stem>.<hash>.<suffix>, except index.html, which
stays at the top. The hash covers the content after its references were rewritten, so a name changes
exactly when something behind it does, and two builds give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

SOURCE = Path(__file__).resolve().parents[1] / "app" / "frontend" / "src"
INDEX = "index.html"
HASH_LENGTH = 12
COMPRESSED = {".html", ".css", ".js", ".svg", ".json", ".txt", ".webmanifest"}

_JS_IMPORT = re.compile(
    r"""^(?P<head>[ \t]*(?:import|export)\b[^'";]*?\bfrom\s*|[ \t]*import\s*)(?P<q>['"])(?P<ref>[^'"\n]+)(?P=q)"""
    r"""|(?P<head2>\bimport\(\s*)(?P<q2>['"])(?P<ref2>[^'"\n]+)(?P=q2)""",
    re.MULTILINE,
)
_JS_COMMENT = re.compile(r"/\*.*?\*/|^[ \t]*//[^\n]*", re.DOTALL | re.MULTILINE)
_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_CSS_REF = re.compile(
    r"""(?P<head>@import\s+|url\(\s*)(?P<q>['"]?)(?P<ref>[^'")\s;]+)(?P=q)""", re.IGNORECASE
)
_EXTERNAL = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
_HTML_REFS = {
    ("link", "href"), ("script", "src"), ("img", "src"), ("source", "src"), ("use", "href"),
}  # fmt: skip


class BuildError(Exception):
    """The source cannot become a page; the message names file and reference."""


@dataclass(frozen=True)
class _Reference:
    start: int
    end: int
    target: str
    module: bool = False


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the page into a folder.")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="replaced as a whole"
    )
    parser.add_argument(
        "--source", type=Path, default=SOURCE, metavar="DIR", help="default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    try:
        written = build(arguments.out, arguments.source)
    except BuildError as error:
        print(f"build_frontend: {error}", file=sys.stderr)
        return 1
    print(f"{len(written)} files in {arguments.out}")
    return 0


def build(out: Path, source: Path = SOURCE) -> list[str]:
    """Compiles the source and replaces `out` with the result, or leaves `out` as it was."""
    files = compile_page(source)
    if out.exists() and not _replaceable(out):
        raise BuildError(f"{out} exists and does not look like a built page: choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        fresh = Path(scratch) / "dist"
        for name, content in files.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    return sorted(files)


def compile_page(source: Path = SOURCE) -> dict[str, bytes]:
    """The built page as path → content, gzip copies included."""
    if not (source / INDEX).is_file():
        raise BuildError(f"{source / INDEX} is missing")
    contents = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in sorted(source.rglob("*"))
        if path.is_file()
    }
    references = {name: list(_references(name, content)) for name, content in contents.items()}
    targets = {
        name: {ref: _resolve(name, ref.target, contents) for ref in found}
        for name, found in references.items()
    }
    order = _dependencies_first(INDEX, {name: list(t.values()) for name, t in targets.items()})
    if idle := sorted(contents.keys() - set(order)):
        raise BuildError(f"nothing refers to {', '.join(idle)}")

    urls: dict[str, str] = {}
    built: dict[str, bytes] = {}
    for name in order:
        content = _rewrite(name, contents[name], {r: urls[t] for r, t in targets[name].items()})
        if name == INDEX:
            modules = [target for ref, target in targets[INDEX].items() if ref.module]
            content = _preload(content, [urls[m] for m in order if _is_behind(m, modules, targets)])
            built[INDEX] = content
            continue
        digest = hashlib.sha256(content).hexdigest()[:HASH_LENGTH]
        path = PurePosixPath(name)
        urls[name] = f"/assets/{path.stem}.{digest}{path.suffix}"
        built[urls[name].removeprefix("/")] = content
    packed = {
        f"{name}.gz": _gzip(content)
        for name, content in built.items()
        if PurePosixPath(name).suffix in COMPRESSED
    }
    return built | packed


def _replaceable(out: Path) -> bool:
    return out.is_dir() and ((out / INDEX).is_file() or not any(out.iterdir()))


def _references(name: str, content: bytes) -> Iterator[_Reference]:
    find = _FINDERS.get(PurePosixPath(name).suffix)
    if find is None:
        return
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BuildError(f"{name} is not UTF-8: {error}") from error
    for reference in find(name, text):
        if not reference.target.startswith("#"):
            yield reference


def _in_script(_name: str, text: str) -> Iterator[_Reference]:
    for match in _JS_IMPORT.finditer(_blank(_JS_COMMENT, text)):
        group = "ref" if match["ref"] is not None else "ref2"
        yield _Reference(*match.span(group), match[group], module=True)


def _in_style(_name: str, text: str) -> Iterator[_Reference]:
    for match in _CSS_REF.finditer(_blank(_CSS_COMMENT, text)):
        yield _Reference(*match.span("ref"), match["ref"])


def _in_page(name: str, text: str) -> Iterator[_Reference]:
    reader = _PageReader(name, text)
    reader.feed(text)
    reader.close()
    yield from reader.found


def _in_picture(name: str, text: str) -> Iterator[_Reference]:
    if re.search(r"<script\b|\bon\w+\s*=", text, re.IGNORECASE):
        raise BuildError(f"{name}: a picture may not carry scripts")
    return iter(())


_FINDERS: dict[str, Callable[[str, str], Iterator[_Reference]]] = {
    ".js": _in_script,
    ".css": _in_style,
    ".html": _in_page,
    ".svg": _in_picture,
}


class _PageReader(HTMLParser):
    """Finds what the page refers to, and refuses what the content security policy would block."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__()
        self.found: list[_Reference] = []
        self._name = name
        self._line_starts = [0, *(m.end() for m in re.finditer("\n", text))]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        where = f"{self._name}:{self.getpos()[0]}"
        inline = [key for key in given if key == "style" or key.startswith("on")]
        if inline or tag == "style" or (tag == "script" and "src" not in given):
            raise BuildError(f"{where}: inline {inline[0] if inline else tag} is not allowed")
        for key, value in given.items():
            if (tag, key) in _HTML_REFS and value:
                self._add(key, value, module=tag == "script")

    def _add(self, key: str, value: str, *, module: bool) -> None:
        line, column = self.getpos()
        tag = self.get_starttag_text() or ""
        match = re.search(rf"""\s{key}\s*=\s*["']?({re.escape(value)})""", tag)
        if match is None:
            raise BuildError(f"{self._name}:{line}: write {key}={value!r} without entities")
        start = self._line_starts[line - 1] + column + match.start(1)
        self.found.append(_Reference(start, start + len(value), value, module=module))


def _blank(pattern: re.Pattern[str], text: str) -> str:
    """Blanks out what matches, every other character keeping its place."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _resolve(name: str, target: str, contents: dict[str, bytes]) -> str:
    if _EXTERNAL.match(target):
        raise BuildError(f"{name} refers to {target!r}: the page may load only its own files")
    script = name.endswith(".js")
    if script and not target.startswith("./") and not target.startswith("../"):
        raise BuildError(f"{name} imports {target!r}: write a path that starts with ./ or ../")
    base = PurePosixPath("/") if target.startswith("/") else PurePosixPath("/", name).parent
    parts: list[str] = []
    for part in (base / target.lstrip("/")).parts[1:]:
        if part == ".." and not parts:
            raise BuildError(f"{name} refers to {target!r}, which lies outside the source")
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    resolved = "/".join(parts)
    if resolved not in contents:
        raise BuildError(f"{name} refers to {target!r}, but there is no {resolved}")
    return resolved


def _dependencies_first(root: str, targets: dict[str, list[str]]) -> list[str]:
    order: list[str] = []
    trail: list[str] = []

    def visit(name: str) -> None:
        if name in trail:
            circle = " → ".join([*trail[trail.index(name) :], name])
            raise BuildError(f"files refer to each other in a circle: {circle}")
        if name in order:
            return
        trail.append(name)
        for target in targets[name]:
            visit(target)
        trail.pop()
        order.append(name)

    visit(root)
    return order


def _rewrite(name: str, content: bytes, urls: dict[_Reference, str]) -> bytes:
    if not urls:
        return content
    text = content.decode()
    for reference in sorted(urls, key=lambda r: r.start, reverse=True):
        url = urls[reference]
        # Siblings in one folder: a relative name keeps working wherever the page is mounted.
        new = url if name == INDEX else f"./{PurePosixPath(url).name}"
        text = text[: reference.start] + new + text[reference.end :]
    return text.encode()


def _is_behind(name: str, modules: list[str], targets: dict[str, dict[_Reference, str]]) -> bool:
    """Whether a module is imported, at any depth, by the page's own modules."""
    return name.endswith(".js") and any(
        name == dependency or _is_behind(name, [dependency], targets)
        for module in modules
        for dependency in targets[module].values()
    )


def _preload(page: bytes, urls: list[str]) -> bytes:
    """Tells the browser of all modules at once instead of one import at a time."""
    lines = "".join(f'  <link rel="modulepreload" href="{url}">\n' for url in urls)
    return page.replace(b"</head>", f"{lines}</head>".encode(), 1)


def _gzip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as packer:
        packer.write(content)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
