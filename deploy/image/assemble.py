"""Put an image together: the interpreter, what the program imports and links, and the papers of all of it.

    assemble.py SITE ROOT

SITE is the directory that pip installed the program and its dependencies in, ROOT becomes the root of the image.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from bytecode import compiled
from libraries import UNOPENED, copy_in, needed_libraries
from modules import needed_modules
from packages import Component, add_debian_packages, add_distributions
from sbom import bill_of_materials

PROGRAM = "nullsmtpd"
PRODUCT = "nullsmtpd-521"

_INTERPRETER = Path(sys.executable).resolve()
_STDLIB = Path(sysconfig.get_path("stdlib"))

# -I, -S: nothing from PYTHON* variables, no search for site-packages: it starts sooner, and the library's directory is
# the one place where modules are. The kernel starts the interpreter by the first line; no shell is needed for that.
_COMMAND = f"""#!{_INTERPRETER} -IS
import sys

from {PROGRAM}.__main__ import main

sys.exit(main())
"""

# pthread_exit() opens it, and CPython calls that for a daemon thread which outlives the interpreter. The only threads
# are those that serve the metrics.
_FOR_THREADS = {"libgcc_s.so.1"}
_THREADS = "prometheus_client"

_ETC = {
    "passwd": "root:x:0:0:root:/:/\nnobody:x:65534:65534:nobody:/:/\nnullsmtpd:x:65532:65532:nullsmtpd:/:/\n",
    "group": "root:x:0:\nnogroup:x:65534:\nnullsmtpd:x:65532:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def main() -> None:
    """Fill ROOT."""
    site, root = (Path(argument).resolve() for argument in sys.argv[1:])
    modules = needed_modules(PROGRAM, site)
    sources = [path for path in modules.values() if path]
    copies = [_add_module(source, site, root) for source in sources]
    binaries = {copy_in(_INTERPRETER, root), *(copy for copy in copies if copy.suffix == ".so")}
    libraries = needed_libraries(binaries, {*UNOPENED, *(() if _THREADS in modules else _FOR_THREADS)})
    for library in libraries:
        copy_in(library, root)
    release = Path("/usr/lib/os-release")
    copy_in(release, root)
    _add_configuration(root)
    target = root / _STDLIB.relative_to("/")
    distributions = list(add_distributions(sources, site, target))
    debian = list(add_debian_packages([*sources, *libraries, release, _INTERPRETER], root))
    _add_bill_of_materials(root, [*distributions, *debian, _bundled_libuv(site)])


def _add_module(source: Path, site: Path, root: Path) -> Path:
    """Put a module where -S finds it: an extension stripped, Python as byte code without its source."""
    dependency = source.is_relative_to(site)
    path = _STDLIB / source.relative_to(site if dependency else _STDLIB)
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".so":
        shutil.copyfile(source, target)
        if dependency:  # those of Debian are stripped already
            subprocess.run(["strip", "--strip-unneeded", target], check=True)
        return target
    # In the place of the source, where Python compares it with nothing.
    target = target.with_suffix(".pyc")
    target.write_bytes(compiled(source, str(path), lines=dependency))
    return target


def _add_configuration(root: Path) -> None:
    # The interpreter finds its library by the name of this file (Modules/getpath.py); the module is frozen in itself.
    (root / _STDLIB.relative_to("/") / "os.pyc").touch()
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    for name, text in _ETC.items():
        (root / "etc" / name).write_text(text)
    command = root / "usr/bin" / PROGRAM
    command.write_text(_COMMAND)
    command.chmod(0o755)
    (root / "usr/bin/python3").symlink_to(_INTERPRETER.name)


def _bundled_libuv(site: Path) -> Component:
    """Return the library that is linked into uvloop, which no package database knows."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import uvloop.loop; print(uvloop.loop.libuv_get_version())"
    number = int(subprocess.run([sys.executable, "-c", code, site], check=True, stdout=subprocess.PIPE).stdout)
    version = f"{number >> 16}.{number >> 8 & 0xFF}.{number & 0xFF}"  # UV_VERSION_HEX
    return Component("libuv", version, f"pkg:github/libuv/libuv@v{version}", "MIT")


def _add_bill_of_materials(root: Path, components: list[Component]) -> None:
    product = next(one for one in components if one.name == PRODUCT)
    parts = [one for one in components if one is not product]
    path = root / "usr/share/sbom" / f"{PROGRAM}.cdx.json"
    path.parent.mkdir(parents=True)
    path.write_text(bill_of_materials(product, parts))


if __name__ == "__main__":
    main()
