"""Which Python modules the program needs: those that importing it loads, and those that its functions import later.

Following every import statement would end with most of the standard library: each platform's branch, each module's
own self-test. So what a module imports at its top is found by importing it, and the imports inside functions are read
from the source of the program and its dependencies. The few that functions of the standard library do are listed.
"""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["needed_modules"]

#: Needed beside what import statements of the program and its dependencies name.
_ALSO = {
    "encodings.ascii": "text streams look codecs up by name",
    "encodings.idna": "socket looks it up for host names",
    "encodings.latin_1": "text streams look codecs up by name",
    "encodings.punycode": "the idna codec and nullmx.py look it up",
    "inspect": "asyncio, when event_loop.py has not deferred the import, and in messages about unexpected exceptions",
    "locale": "gettext, when the environment names a language",
    "runpy": "python -m",
    "shutil": "argparse, for the width of the terminal",
    "subprocess": "asyncio, when event_loop.py has not deferred the import",
    "textwrap": "argparse and traceback",
    "tokenize": "linecache, for traceback",
}

#: A package whose modules are imported by computed names: dnspython's classes for record types.
_BY_COMPUTED_NAME = "dns.rdtypes"

#: Extension modules without which the standard library works. They bring OpenSSL and libraries for archives.
_ABSENT = ("_bz2", "_hashlib", "_lzma", "_ssl", "zlib")

# Prints the name and the file of every module that importing those named as arguments loads; `None` for those in the
# interpreter. A name that cannot be imported here is not needed in the image either: it is an attribute, a module for
# another platform, or part of a distribution that is not installed.
_LOAD = """
import importlib.util, sys
sys.path.insert(0, sys.argv[1])
for name in ABSENT:
    sys.modules[name] = None  # importing it fails
if importlib.util.find_spec("nullsmtpd"):
    from nullsmtpd.runtime.event_loop import import_uvloop
    import_uvloop()
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
def file(module):
    frozen = getattr(getattr(module, "__spec__", None), "origin", None) == "frozen"
    return None if frozen else getattr(module, "__file__", None)
print({name: file(module) for name, module in sys.modules.items() if module and name != "__main__"})
"""


def needed_modules(program: str, site: Path) -> dict[str, Path | None]:
    """Return the modules that ``python -m program`` needs, with their files; those in the interpreter have none.

    ``site`` is the directory that the program and its dependencies are installed in.
    """
    found: dict[str, Path | None] = {}
    wanted = {f"{program}.__main__", *_ALSO}
    while new := _load(wanted, site, found):
        found |= new
        for name, path in new.items():
            if path and path.is_relative_to(site):
                wanted |= set(_late_imports(name, path))
                if name == _BY_COMPUTED_NAME:
                    files = (file.relative_to(site).with_suffix("") for file in path.parent.rglob("*.py"))
                    wanted |= {".".join(file.parts) for file in files if file.name != "__init__"}
    return found


def _load(names: Iterable[str], site: Path, known: Iterable[str]) -> dict[str, Path | None]:
    """Return the modules that are loaded once those named were imported in a new interpreter, except those known."""
    code = _LOAD.replace("ABSENT", repr(_ABSENT))
    command = [sys.executable, "-I", "-S", "-c", code, str(site), *sorted(names)]
    loaded = ast.literal_eval(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {name: Path(path) if path else None for name, path in loaded.items() if name not in known}


def _late_imports(name: str, path: Path) -> Iterator[str]:
    """Yield the names of the modules, and of what may be modules, that functions of a module import."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for function in ast.walk(ast.parse(path.read_bytes() if path.suffix == ".py" else b"")):
        for node in ast.walk(function) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) else ():
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)
