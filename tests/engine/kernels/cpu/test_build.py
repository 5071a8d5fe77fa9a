"""Building the library: what its name says, who builds it, and what happens when nobody can."""

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlmflow_engine.kernels.cpu import build
from vlmflow_engine.kernels.cpu.build import BuildError, Sources, cached_library


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """As few files as make a library, compiled in a second."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("levels.h", "levels.cpp"):
        shutil.copy(Sources().folder / name, folder)
    return Sources(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vlmflow" / "kernels"


def put_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shell script be the only g++ there is."""
    folder.mkdir()
    path = folder / "g++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_library_is_named_by_all_it_is_made_of(sources):
    names = [
        sources.library_name(),
        sources.library_name("g++ 12"),
        sources.library_name("g++ 13"),
        Sources(sources.folder, ("-g",)).library_name(),
    ]
    for path in (sources.folder / "levels.cpp", sources.folder / "levels.h"):
        path.write_text(path.read_text() + "// changed\n")
        names.append(sources.library_name())
    (sources.folder / "new.h").write_text("")
    names.append(sources.library_name())
    assert len(set(names)) == len(names)
    assert all(name.endswith(".so") for name in names)


def test_a_library_is_built_once_and_then_found(sources, cache, compiler, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    put_compiler(tmp_path / "bin", f'echo "$@" >> {calls}; exec {compiler} "$@"', monkeypatch)
    path = cached_library(sources)
    assert path.parent == cache
    assert "-shared" in calls.read_text()
    calls.unlink()
    assert cached_library(sources) == path
    assert calls.read_text().split() == ["--version"]
    assert sorted(file.suffix for file in cache.iterdir()) == [".lock", ".so"]


def test_two_builders_at_once_build_one_library(sources, compiler, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    put_compiler(tmp_path / "bin", f'echo "$@" >> {calls}; exec {compiler} "$@"', monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(cached_library, [sources, sources]))
    assert paths[0] == paths[1]
    assert calls.read_text().count("-shared") == 1


def test_a_compiler_that_fails_is_reported_with_its_first_error(
    sources, compiler, cache, monkeypatch
):
    (sources.folder / "broken.cpp").write_text("int x = unknown_name;\n")
    with pytest.raises(BuildError, match=r"failed with 1: .*unknown_name"):
        cached_library(sources)
    assert not list(cache.glob("*.so"))


def test_a_compiler_that_cannot_be_run_is_reported(sources, tmp_path, monkeypatch):
    put_compiler(tmp_path / "bin", "exit 3", monkeypatch)
    with pytest.raises(BuildError, match=r"g\+\+ failed with 3: no message"):
        cached_library(sources)


def test_without_a_compiler_the_message_says_so(sources, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BuildError, match=r"there is no g\+\+ on the PATH"):
        cached_library(sources)


def test_a_cache_that_cannot_be_written_is_reported(sources, compiler, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file, not a folder")
    with pytest.raises(BuildError, match="cannot hold what is compiled"):
        cached_library(sources)


def test_the_command_builds_into_a_folder(sources, compiler, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "Sources", lambda: sources)
    assert build.main(["--into", str(tmp_path / "new" / "folder")]) == 0
    path = tmp_path / "new" / "folder" / sources.library_name()
    assert capsys.readouterr().out.strip() == str(path)
    assert path.is_file()


def test_the_command_without_a_compiler_is_one_line_and_no_success(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "vlmflow_engine.kernels.cpu.build", "--into", str(tmp_path)],
        env={"PATH": "", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the CPU's kernels were not built: there is no g++ on the PATH"
    ]
