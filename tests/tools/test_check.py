"""Every test is in a suite, and every suite has its tests."""

from pathlib import Path

from tools.check import FAST, TESTS

ROOT = Path(__file__).parents[2]


def test_every_test_file_belongs_to_a_suite():
    folders = [a for arguments, _ in TESTS.values() for a in arguments if not a.startswith("-")]
    files = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")]
    for file in files:
        assert any(file.is_relative_to(folder) for folder in folders), file


def test_the_places_of_all_suites_exist():
    for arguments, _ in TESTS.values():
        assert all((ROOT / a.removeprefix("--ignore=")).exists() for a in arguments)
    assert all((ROOT / folder).is_dir() for folder in FAST)
