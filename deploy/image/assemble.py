"""Assemble an image's root directory: interpreter, modules, shared libraries, and package metadata.

    assemble.py SITE ROOT

SITE is the directory that pip installed the program and its dependencies in, ROOT the directory to make.
"""

import importlib.util
import marshal
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import CodeType

from metadata import Component, add_debian_packages, add_distributions, bill_of_materials
from modules import needed_modules

PROGRAM = "nullsmtpd"
PRODUCT = "nullsmtpd-521"

_INTERPRETER = Path(sys.executable).resolve()
_STDLIB = Path(sysconfig.get_path("stdlib"))

# -I, -S: ignore PYTHON* variables and do not search for site-packages. The interpreter then starts sooner, and all
# modules are in the standard library's directory. The kernel reads the first line; no shell is needed.
_COMMAND = f"""#!{_INTERPRETER} -IS
import sys

from {PROGRAM}.__main__ import main

sys.exit(main())
"""

_ETC = {
    "passwd": "root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/:/\nnullsmtpd:x:65532:65532:nullsmtpd:/:/\n",
    "group": "root:x:0:\nnogroup:x:65534:\nnullsmtpd:x:65532:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def main() -> None:
    """Fill ROOT."""
    site, root = (Path(argument).resolve() for argument in sys.argv[1:])
    modules = [path for path in needed_modules(PROGRAM, site).values() if path]
    for module in modules:
        _add_module(module, site, root)
    _add_configuration(root)
    binaries = [_INTERPRETER, *(module for module in modules if module.suffix == ".so")]
    for file in [_INTERPRETER, Path("/usr/lib/os-release"), *_linked_libraries(binaries)]:
        _add_file(file, root)
    distributions = add_distributions(modules, site, root / _STDLIB.relative_to("/"))
    components = [*distributions, *add_debian_packages(root), _bundled_libuv(site)]
    path = root / "usr/share/sbom" / f"{PROGRAM}.cdx.json"
    path.parent.mkdir(parents=True)
    path.write_text(bill_of_materials(PRODUCT, components))


def _add_module(source: Path, site: Path, root: Path) -> None:
    """Add a module to the standard library's directory: an extension stripped, Python as byte code without source."""
    own = source.is_relative_to(site)
    path = _STDLIB / source.relative_to(site if own else _STDLIB)
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".so":
        shutil.copyfile(source, target)
        if own:  # Debian's are stripped
            subprocess.run(["strip", "--strip-unneeded", target], check=True)
    else:  # without docstrings and assertions
        text = source.read_bytes()
        code = compile(text, str(path), "exec", dont_inherit=True, optimize=2)
        header = importlib.util.MAGIC_NUMBER + b"\1\0\0\0" + importlib.util.source_hash(text)  # PEP 552, unchecked
        target.with_suffix(".pyc").write_bytes(header + marshal.dumps(code if own else _without_lines(code)))


def _without_lines(code: CodeType) -> CodeType:
    """Return code with the line of its function only: 0.3 MB less for the standard library.

    The format of the table is in Objects/locations.md of CPython: an entry with code 13 (no columns) is a first octet,
    which has the number of instructions that it is for, 8 at most, and the difference to the line before.
    """
    size = len(code.co_code) // 2
    table = b"".join(bytes([0x80 | 13 << 3 | min(size - start, 8) - 1, 0]) for start in range(0, size, 8))
    constants = (_without_lines(value) if isinstance(value, CodeType) else value for value in code.co_consts)
    return code.replace(co_linetable=table, co_consts=tuple(constants))


def _linked_libraries(binaries: Iterable[Path]) -> set[Path]:
    """Return the paths of all shared libraries that the dynamic linker loads for these programs and libraries."""
    listed = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=True).stdout
    if "not found" in listed:
        raise SystemExit(f"a shared library is missing:\n{listed}")
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}


def _add_file(source: Path, root: Path) -> None:
    """Copy a file to the same path below ``root``, and if the path is a symbolic link, both the link and the file."""
    for path in {source.parent.resolve() / source.name, source.resolve()}:
        copy = root / path.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy, follow_symlinks=False)


def _add_configuration(root: Path) -> None:
    for directory in Path("/").glob("lib*"):
        if directory.is_symlink():  # /lib is /usr/lib, as on every Debian system
            (root / directory.name).symlink_to(directory.readlink())
    # The interpreter finds the standard library by the name of this file (Modules/getpath.py); `os` itself is frozen.
    (root / _STDLIB.relative_to("/") / "os.pyc").touch()
    (root / "etc").mkdir()
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text)
    command = root / "usr/bin" / PROGRAM
    command.parent.mkdir()
    command.write_text(_COMMAND)
    command.chmod(0o755)
    (root / "usr/bin/python3").symlink_to(_INTERPRETER.name)


def _bundled_libuv(site: Path) -> Component:
    """Return the library that is linked into uvloop, which no package database lists."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import uvloop.loop; print(uvloop.loop.libuv_get_version())"
    number = int(subprocess.run([sys.executable, "-c", code, site], check=True, stdout=subprocess.PIPE).stdout)
    version = f"{number >> 16}.{number >> 8 & 0xFF}.{number & 0xFF}"  # UV_VERSION_HEX
    return Component("libuv", version, f"pkg:github/libuv/libuv@v{version}", [{"license": {"id": "MIT"}}])


if __name__ == "__main__":
    main()
