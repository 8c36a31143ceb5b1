"""The build of the page: names by content, references that hold, the same bytes every time."""

import gzip
import re
import subprocess
import sys
from pathlib import Path

import build_frontend
import pytest
from build_frontend import BuildError, build, compile_page

PAGE = """<!doctype html>
<html lang="en"><head>
<link rel="stylesheet" href="page.css">
<link rel="icon" href="mark.svg">
<script type="module" src="js/main.js"></script>
</head><body><a href="#top">top</a></body></html>
"""
FILES = {
    "index.html": PAGE,
    "page.css": "/* url(not-a-file.png) */\nbody { background: url('mark.svg'); }\n",
    "mark.svg": '<svg xmlns="http://www.w3.org/2000/svg"/>\n',
    "js/main.js": (
        "// import './gone.js';\nimport {\n  b,\n} from './b.js';\n"
        "import './side.js';\nexport * from '../c.js';\nb();\n"
    ),
    "js/b.js": "import * as c from '../c.js';\nexport const b = () => c;\n",
    "js/side.js": 'const later = () => import("./late.js");\nexport { later };\n',
    "js/late.js": "export default 1;\n",
    "c.js": "export const c = 'from here';\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def one(files: dict[str, bytes], stem: str, suffix: str) -> str:
    [name] = [n for n in files if re.fullmatch(rf"assets/{stem}\.[0-9a-f]{{12}}\.{suffix}", n)]
    return name


def test_names_carry_a_hash_and_references_follow(source: Path) -> None:
    files = compile_page(source)
    main = files[one(files, "main", "js")].decode()
    page = files["index.html"].decode()
    assert f'src="/{one(files, "main", "js")}"' in page
    assert f'href="/{one(files, "page", "css")}"' in page
    assert f'href="/{one(files, "mark", "svg")}"' in page
    for module in ("b", "side", "c"):
        assert f"'./{Path(one(files, module, 'js')).name}'" in main
    assert "'./gone.js'" in main
    assert f'"./{Path(one(files, "late", "js")).name}"' in files[one(files, "side", "js")].decode()
    assert f"url('./{Path(one(files, 'mark', 'svg')).name}')" in (
        files[one(files, "page", "css")].decode()
    )


def test_the_page_announces_every_module_behind_it(source: Path) -> None:
    files = compile_page(source)
    announced = re.findall(r'modulepreload" href="/([^"]+)"', files["index.html"].decode())
    assert sorted(announced) == sorted(one(files, m, "js") for m in ("b", "c", "side", "late"))


def test_a_change_renames_the_file_and_all_that_lead_to_it(source: Path) -> None:
    before = compile_page(source)
    (source / "c.js").write_text("export const c = 'changed';\n")
    after = compile_page(source)
    for stem in ("c", "b", "main"):
        assert one(before, stem, "js") != one(after, stem, "js")
    for stem in ("side", "late"):
        assert one(before, stem, "js") == one(after, stem, "js")
    assert one(before, "page", "css") == one(after, "page", "css")


def test_two_builds_are_byte_identical(source: Path, tmp_path: Path) -> None:
    build(tmp_path / "one", source)
    for path in source.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes())
    build(tmp_path / "two", source)
    one_, two = (
        {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (tmp_path / "one", tmp_path / "two")
    )
    assert one_ == two
    assert "index.html.gz" in one_


def test_gzip_copies_unpack_to_the_file_and_carry_no_time(source: Path) -> None:
    files = compile_page(source)
    packed = [name for name in files if name.endswith(".gz")]
    assert len(packed) * 2 == len(files)
    for name in packed:
        assert gzip.decompress(files[name]) == files[name.removesuffix(".gz")]
        assert files[name][4:8] == bytes(4)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("js/b.js", "import './gone.js';\n", r"js/b\.js refers to '\./gone\.js'.* no js/gone\.js"),
        ("js/b.js", "import 'lodash';\n", r"js/b\.js imports 'lodash'"),
        ("js/b.js", "import '../../../etc/x.js';\n", r"outside the source"),
        ("js/b.js", "import 'https://example.org/x.js';\n", r"only its own files"),
        ("js/b.js", "import './main.js';\n", r"circle: js/main\.js → js/b\.js → js/main\.js"),
        ("page.css", "a { background: url(gone.png); }", r"page\.css refers to 'gone\.png'"),
        ("page.css", '@import "https://example.org/a.css";', r"only its own files"),
        ("page.css", "a { background: url(data:image/png;base64,AA) }", r"only its own files"),
        ("index.html", PAGE + '<img src="gone.png">', r"index\.html refers to 'gone\.png'"),
        ("index.html", PAGE + '<script src="//example.org/x.js"></script>', r"only its own files"),
        ("index.html", PAGE + "<script>1</script>", r"index\.html:\d+: inline script"),
        ("index.html", PAGE + "<style>a{}</style>", r"inline style"),
        ("index.html", PAGE + '<p style="color: red">', r"inline style"),
        ("index.html", PAGE + '<p onclick="x()">', r"inline onclick"),
        ("mark.svg", "<svg><script>1</script></svg>", r"may not carry scripts"),
        ("js/idle.js", "export {};\n", r"nothing refers to js/idle\.js"),
    ],
)
def test_a_broken_source_is_refused_in_one_sentence(
    source: Path, name: str, text: str, says: str
) -> None:
    (source / name).write_text(text, encoding="utf-8")
    with pytest.raises(BuildError, match=says):
        compile_page(source)


def test_a_file_that_is_not_text_is_refused(source: Path) -> None:
    (source / "js/b.js").write_bytes(b"\xff\xfe")
    with pytest.raises(BuildError, match=r"js/b\.js is not UTF-8"):
        compile_page(source)


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"index\.html is missing"):
        compile_page(tmp_path)


def test_a_new_build_replaces_the_old_one_as_a_whole(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    build(out, source)
    (out / "assets" / "left-over.js").write_text("")
    written = build(out, source)
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert found == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dist", "src"]


def test_a_failed_build_leaves_the_old_one(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "dist"
    written = build(out, source)
    (source / "c.js").unlink()
    with pytest.raises(BuildError):
        build(out, source)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == written


def test_a_folder_that_is_no_page_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="choose another folder"):
        build(out, source)
    assert (out / "thesis.txt").exists()


def test_the_command_builds_the_real_page(tmp_path: Path) -> None:
    out = tmp_path / "dist"
    command = [sys.executable, "-I", build_frontend.__file__, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.fullmatch(rf"\d+ files in {re.escape(str(out))}\n", done.stdout)
    assert (out / "index.html.gz").is_file()


def test_the_command_fails_with_a_sentence(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "c.js").unlink()
    assert build_frontend.main(["--out", str(tmp_path / "d"), "--source", str(source)]) == 1
    assert capsys.readouterr().err.startswith("build_frontend: js/")
