"""Take from the base image what a job never needs: installers, and bits that change the user.

Run by the Dockerfile in the stage that is shipped, as root, by the base's own Python.
"""

import shutil
import site
import stat
import sysconfig
from pathlib import Path

_INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")
_SCRIPTS = ("pip*", "wheel", "idle*", "pydoc*", "2to3*")


def main() -> None:
    for folder in map(Path, {*site.getsitepackages(), sysconfig.get_path("purelib")}):
        for name in _INSTALLERS:
            remove(folder / name)
            for metadata in folder.glob(f"{name}-*-info"):
                remove(metadata)
        remove(folder / "distutils-precedence.pth")
    remove(Path(sysconfig.get_path("stdlib")) / "ensurepip")
    for pattern in _SCRIPTS:
        for script in Path(sysconfig.get_path("scripts")).glob(pattern):
            remove(script)
    for root in ("/bin", "/sbin", "/usr", "/opt"):
        for path in Path(root).resolve().rglob("*"):
            clear_setid(path)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear_setid(path: Path) -> None:
    """Let a program run as who starts it. Folders keep theirs: it only hands down the group."""
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
        path.chmod(stat.S_IMODE(mode) & ~(stat.S_ISUID | stat.S_ISGID))


if __name__ == "__main__":
    main()
