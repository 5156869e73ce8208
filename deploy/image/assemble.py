"""Assemble an image's root directory: interpreter, modules, shared libraries, and package metadata.

    assemble.py SITE ROOT

SITE is the directory that pip installed the program and its dependencies in, ROOT the directory to make.
"""

import ast
import importlib.util
import marshal
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType

from metadata import add_debian_packages, add_distributions, bill_of_materials, component, write

_INTERPRETER = Path(sys.executable).resolve()
_STDLIB = Path(sysconfig.get_path("stdlib"))

#: Modules that functions of the standard library import, or look up by name.
_IMPORTED_LATE = (
    *("encodings.ascii", "encodings.latin_1"),  # text streams
    *("encodings.idna", "encodings.punycode"),  # host names
    *("inspect", "subprocess"),  # asyncio, when event_loop.py has not deferred their import
    "runpy",  # python -m
    *("textwrap", "tokenize"),  # traceback
)

# Prints the name and the file of every module that importing those named as arguments loads; the frozen ones of the
# interpreter have no file. A name that cannot be imported here is not needed in the image either: it is an attribute,
# a module for another platform, or part of a distribution that is not installed.
_LOAD = """
import importlib, sys
for name in "_bz2", "_hashlib", "_lzma", "_ssl", "zlib":
    sys.modules[name] = None  # importing it fails: the standard library does without OpenSSL and archives
sys.path.insert(0, sys.argv[1])
from nullsmtpd.runtime.event_loop import import_uvloop
import_uvloop()
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
for name, module in sys.modules.items():
    spec = getattr(module, "__spec__", None)
    if spec and spec.has_location:
        print(name, spec.origin)
"""

# -I, -S: ignore PYTHON* variables and do not search for site-packages. The interpreter then starts sooner, and all
# modules are in the standard library's directory. The kernel reads the first line; no shell is needed.
_COMMAND = f"""#!{_INTERPRETER} -IS
import sys

from nullsmtpd.__main__ import main

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
    modules = set(needed_modules(site).values())
    for module in modules:
        _add_module(module, site, root)
    _add_configuration(root)
    binaries = [_INTERPRETER, *(module for module in modules if module.suffix == ".so")]
    for file in [_INTERPRETER, Path("/usr/lib/os-release"), *_linked_libraries(binaries)]:
        _add_file(file, root)
    distributions = add_distributions(modules, site, root / _STDLIB.relative_to("/"))
    components = [*distributions, *add_debian_packages(root), _bundled_libuv(site)]
    write(root / "usr/share/sbom/nullsmtpd.cdx.json", bill_of_materials("nullsmtpd-521", components))


def needed_modules(site: Path) -> dict[str, Path]:
    """Return the modules that ``python -m nullsmtpd`` needs beside those in the interpreter, and their files.

    Following every import statement would end with most of the standard library: each platform's branch, each module's
    own self-test. So what a module imports at its top is found by importing it, and the imports inside functions are
    read from the source of what is installed in ``site``: the program and its dependencies.
    """
    found: dict[str, Path] = {}
    record_types = site.glob("dns/rdtypes/*/[!_]*.py")  # dnspython computes the names of these modules
    wanted = {".".join(file.relative_to(site).with_suffix("").parts) for file in record_types}
    wanted |= {"nullsmtpd.__main__", *_IMPORTED_LATE}
    while new := {name: path for name, path in _load(wanted, site) if name not in found}:
        found |= new
        for name, path in new.items():
            if path.is_relative_to(site) and path.suffix == ".py":
                wanted.update(_late_imports(name, path))
    return found


def _load(names: Iterable[str], site: Path) -> Iterator[tuple[str, Path]]:
    """Import these modules in a new interpreter; yield the name and the file of each module that it has then."""
    command = [sys.executable, "-I", "-S", "-c", _LOAD, str(site), *sorted(names)]
    for line in subprocess.check_output(command, text=True).splitlines():
        name, path = line.split(maxsplit=1)
        yield name, Path(path)


def _late_imports(name: str, path: Path) -> Iterator[str]:
    """Yield the names of the modules, and of what may be modules, that functions of a module import, or it names."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for part in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(part, ast.Constant) and re.fullmatch(r"nullsmtpd(\.\w+)+", str(part.value)):
            yield str(part.value)  # for importlib
        for node in ast.walk(part) if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) else ():
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


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
    listed = subprocess.check_output(["ldd", *binaries], text=True)
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
    """Add what no package has in this form: links, user database, the command."""
    for directory in Path("/").glob("lib*"):
        if directory.is_symlink():  # /lib is /usr/lib, as on every Debian system
            (root / directory.name).symlink_to(directory.readlink())
    # The interpreter finds the standard library by the name of this file (Modules/getpath.py); `os` itself is frozen.
    (root / _STDLIB.relative_to("/") / "os.pyc").touch()
    for name, text in _ETC.items():
        write(root / "etc" / name, text)
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    command = root / "usr/bin/nullsmtpd"
    write(command, _COMMAND)
    command.chmod(0o755)
    command.with_name("python3").symlink_to(_INTERPRETER.name)


def _bundled_libuv(site: Path) -> dict[str, object]:
    """Return the library that is linked into uvloop, which no package database lists."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import uvloop.loop; print(uvloop.loop.libuv_get_version())"
    number = int(subprocess.check_output([sys.executable, "-c", code, site]))
    version = f"{number >> 16}.{number >> 8 & 0xFF}.{number & 0xFF}"  # UV_VERSION_HEX
    return component("libuv", version, f"pkg:github/libuv/libuv@v{version}", [{"license": {"id": "MIT"}}])


if __name__ == "__main__":
    main()
