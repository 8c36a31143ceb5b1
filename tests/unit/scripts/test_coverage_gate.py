"""The coverage gate: which module needs how much, and what it says of one that has less."""

import json
from pathlib import Path
from typing import Any

import coverage_gate
import pytest

WHOLE = {
    "tap_trading/ledger/batcher.py": 100.0,
    "tap_trading/base/db.py": 100.0,
    "tap_trading/base/redis.py": 100.0,
}


def report(modules: dict[str, float], folder: str = "app/src/") -> dict[str, Any]:
    return {
        "files": {
            folder + name: {"summary": {"percent_covered": covered, "num_statements": 10}}
            for name, covered in modules.items()
        }
    }


def gate(folder: Path, content: object) -> None:
    path = folder / "coverage.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    coverage_gate.main([str(path)])


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("tap_trading/ledger/batcher.py", 90),
        ("tap_trading/ledger/bets.py", 90),
        ("tap_trading/ledger/queries/history.py", 90),
        ("tap_trading/auth/sessions.py", 80),
        ("tap_trading/base/db.py", 70),
        ("tap_trading/base/redis.py", 70),
        ("tap_trading/base/config.py", 60),
        ("tap_trading/services/api.py", 60),
        ("tap_trading/__init__.py", 60),
    ],
)
def test_every_module_has_its_threshold(name: str, threshold: int) -> None:
    assert coverage_gate.threshold_of(name) == threshold


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("tap_trading/ledger/batcher.py", 90),
        ("tap_trading/auth/challenge.py", 80),
        ("tap_trading/base/db.py", 70),
        ("tap_trading/base/redis.py", 70),
        ("tap_trading/stream/hub.py", 60),
    ],
)
def test_the_threshold_itself_passes_and_less_does_not(
    name: str, threshold: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate(tmp_path, report({**WHOLE, name: threshold}))
    assert "is covered as far as it needs to be" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        gate(tmp_path, report({**WHOLE, name: threshold - 0.1}))
    assert end.value.code == (
        f"coverage: {name} is covered to {threshold - 0.1:.1f} %, but needs {threshold} %."
    )


def test_every_failing_module_is_named_and_no_other(tmp_path: Path) -> None:
    modules = {"tap_trading/a.py": 10.0, "tap_trading/b.py": 59.99, "tap_trading/c.py": 60.0}
    with pytest.raises(SystemExit) as end:
        gate(tmp_path, report(WHOLE | modules))
    first, second = str(end.value.code).splitlines()
    assert first.startswith("coverage: tap_trading/a.py is covered to 10.0 %")
    assert second.startswith("coverage: tap_trading/b.py ")


def test_the_ten_least_covered_are_shown_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate(tmp_path, report(WHOLE | {f"tap_trading/m{n:02}.py": 60.0 + n for n in range(20)}))
    head, *lines, _ = capsys.readouterr().out.splitlines()
    assert head == "covered  needed  module"
    assert [line.split()[-1] for line in lines] == [f"tap_trading/m{n:02}.py" for n in range(10)]
    assert lines[3] == "  63.0%     60%  tap_trading/m03.py"


def test_empty_modules_and_other_packages_do_not_count(tmp_path: Path) -> None:
    content = report(WHOLE)
    empty = {"summary": {"percent_covered": 0.0, "num_statements": 0}}
    content["files"]["app/src/tap_trading/empty.py"] = empty
    content["files"] |= report({"tests/test_x.py": 0.0, "not_tap_trading/x.py": 0.0})["files"]
    gate(tmp_path, content)


@pytest.mark.parametrize("folder", ["", "app/src/", "/somewhere/tap_trading/app/src/"])
def test_paths_are_taken_from_the_package_on(folder: str) -> None:
    found = coverage_gate.modules(report(WHOLE, folder))
    assert {module.name for module in found} == set(WHOLE)


def test_windows_like_paths_are_understood() -> None:
    content = {
        "files": {path.replace("/", "\\"): entry for path, entry in report(WHOLE)["files"].items()}
    }
    assert {module.name for module in coverage_gate.modules(content)} == set(WHOLE)


@pytest.mark.parametrize("missing", sorted(WHOLE))
def test_a_report_without_what_matters_most_is_refused(missing: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"{missing} was not measured"):
        gate(tmp_path, report({name: 100.0 for name in WHOLE if name != missing}))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": {"x": 1}}', '{"files": []}'])
def test_what_is_no_report_is_one_sentence(content: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        gate(tmp_path, content)
    assert str(end.value.code).startswith(f"coverage: {tmp_path}/coverage.json: ")
    assert "\n" not in str(end.value.code)


def test_a_missing_report_and_wrong_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="No such file"):
        coverage_gate.main([str(tmp_path / "none.json")])
    with pytest.raises(SystemExit, match="usage"):
        coverage_gate.main([])
