"""Which Python modules a program needs: what importing it loads, and what its functions may import later.

A list kept by hand goes stale, and following every import statement there is ends with most of the standard library:
each platform's branch, each module's own self-test. So what a module imports at its top is seen by importing it, and
only what its functions import is read from its source.
"""

import ast
import encodings.aliases
import importlib.util
import pkgutil
import re
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

__all__ = ["needed_modules"]

#: Functions of the standard library that run when a module is started as a program, which none is in the image.
_PROGRAMS = {"main", "_main", "_test"}

#: What functions of the standard library may import, and never do for a daemon; each brings more than it is worth.
_DOORS = {
    "calendar": "dates in certificates",
    "concurrent.futures.process": "pools of processes: the daemon forks its workers itself, and asyncio uses threads",
    "importlib.metadata": "lists of distributions",
    "importlib.readers": "data files inside of packages",
    "pickle": "log records for other processes",
    "tracemalloc": "where memory was allocated, when asked to trace that",
}

# Print the name and the file of every module that is there once those named as arguments were imported. One that cannot
# be imported here (another platform's, an attribute's name) cannot be there either. Frozen ones are in the interpreter.
_LOAD = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ImportError:
        pass
def file(module):
    frozen = getattr(getattr(module, "__spec__", None), "origin", None) == "frozen"
    return None if frozen else getattr(module, "__file__", None)
print({name: file(module) for name, module in sys.modules.items() if name != "__main__"})
"""


def needed_modules(program: str, site: Path) -> dict[str, Path | None]:
    """Return the modules that ``python -m program`` needs, with their files; those in the interpreter have none.

    ``site`` is the directory that the program and its dependencies are installed in.
    """
    sys.path.insert(0, str(site))
    found: dict[str, Path | None] = {}
    wanted = {f"{program}.__main__", "runpy", *_codecs_of(Path(sys.executable))}
    while new := _load(wanted, site, found):
        found |= new
        for name, path in new.items():
            if path and path.is_relative_to(site):
                wanted |= set(_late_imports(name, path, program))
    # One step for the standard library: the next one would bring pydoc, unittest and a compiler of Python 2.
    standard = {name: path for name, path in found.items() if path and not path.is_relative_to(site)}
    wanted = {late for name, path in standard.items() for late in _late_imports(name, path, program, skip=_PROGRAMS)}
    closed = tuple(f"{door}." for door in _DOORS)
    return found | _load((name for name in wanted if not f"{name}.".startswith(closed)), site, found)


def _load(names: Iterable[str], site: Path, known: Container[str]) -> dict[str, Path | None]:
    """Return the modules that are there once these were imported, in an interpreter of its own, but for those known."""
    command = [sys.executable, "-I", "-S", "-c", _LOAD, str(site), *sorted(names)]
    modules = ast.literal_eval(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return {name: Path(path) if path else None for name, path in modules.items() if name not in known}


def _late_imports(name: str, path: Path, program: str, skip: Container[str] = ()) -> Iterator[str]:
    """Yield what the functions of a module may import, and the codecs that they name; of C code it is those alone."""
    if path.suffix == ".so":
        yield from _codecs_of(path)
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    own = package.partition(".")[0]
    for function in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or function.name in skip:
            continue
        imports = {one for node in ast.walk(function) for one in _imported(node, package)}
        # A function of ours that begins with what an extra would have brought does not come to the rest.
        if own != program or all(_is_installed(one) for one in imports):
            yield from imports
        for call in ast.walk(function):
            if isinstance(call, ast.Call):
                yield from _named_codecs(call)
                if own != program and own not in sys.stdlib_module_names and _imports_by_computed_name(call):
                    yield from _package(own)


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the names of the modules, and of what may be modules, that a statement or a call in ``package`` imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and _called(node) == "import_module" and isinstance(node.args[0], ast.Constant):
        yield str(node.args[0].value)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name.partition(".")[0]) is not None


def _called(call: ast.Call) -> str:
    """Return the last part of the name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _imports_by_computed_name(call: ast.Call) -> bool:
    """Tell whether this is a call such as ``import_module(prefix + name)``: any module of its package may be meant."""
    return _called(call) == "import_module" and not isinstance(call.args[0], ast.Constant)


def _package(name: str) -> Iterator[str]:
    """Yield the names of a package and of every module in it."""
    yield name
    spec = importlib.util.find_spec(name)
    for module in pkgutil.walk_packages(spec.submodule_search_locations if spec else None, f"{name}."):
        yield module.name


def _named_codecs(call: ast.Call) -> Iterator[str]:
    """Yield the codec of ``text.encode("idna")``, ``open(path, encoding="latin-1")`` and their like."""
    values = [keyword.value for keyword in call.keywords if keyword.arg == "encoding"]
    values += call.args if _called(call) in ("encode", "decode") else []
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            name = encodings.normalize_encoding(value.value).lower()
            yield f"encodings.{encodings.aliases.aliases.get(name, name)}"


def _codecs_of(binary: Path) -> set[str]:
    """Return the codecs that C code looks up by name, such as "idna" for the name of a host: they are its strings."""
    strings = re.findall(rb"(?<=\0)[a-z][a-z0-9_-]{2,20}(?=\0)", binary.read_bytes())
    names = {f"encodings.{string.decode().replace('-', '_')}" for string in strings}
    return {name for name in names if importlib.util.find_spec(name)}
