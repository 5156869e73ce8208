"""The import of uvloop with stand-ins for modules, tried with packages of that name that do what a uvloop may."""

import contextlib
import functools
import importlib
import inspect
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.runtime.event_loop import import_uvloop

REAL = {module.__name__: module for module in (ssl, inspect, subprocess)}

#: What uvloop 0.22 and 0.23 read while they are imported, uvloop/includes/stdlib.pxi.
BOUND = [
    *("ssl.SSLContext", "ssl.MemoryBIO", "ssl.create_default_context", "ssl.SSLError", "ssl.SSLWantReadError"),
    *("ssl.SSLSyscallError", "ssl.SSLZeroReturnError", "ssl.CertificateError"),
    *("ssl.SSL_ERROR_WANT_READ", "ssl.SSL_ERROR_WANT_WRITE", "ssl.SSL_ERROR_SYSCALL"),
    *("inspect.isgenerator", "inspect.iscoroutinefunction"),
    *("subprocess.PIPE", "subprocess.STDOUT", "subprocess.DEVNULL", "subprocess.SubprocessError"),
]
ANY_NAME = [f"{module}.{name}" for module in REAL for name in dir(REAL[module]) if not name.startswith("_")]


@contextlib.contextmanager
def uvloop_that_runs(body: str, *, imported: frozenset[str] = frozenset()) -> Iterator[None]:
    """Have a uvloop whose submodule runs ``body``, and of the three modules only those ``imported`` so far."""
    before = dict(sys.modules)

    def forget_all_but(kept: frozenset[str]) -> None:
        for name in [name for name in sys.modules if name in REAL.keys() - kept or name.partition(".")[0] == "uvloop"]:
            del sys.modules[name]

    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory, "uvloop")
        package.mkdir()
        (package / "__init__.py").write_text("from . import loop\n")
        (package / "loop.py").write_text(f"import inspect, ssl, subprocess\n{body}\n")
        sys.path.insert(0, directory)
        importlib.invalidate_caches()
        forget_all_but(imported)
        try:
            yield
        finally:
            sys.path.remove(directory)
            forget_all_but(frozenset())
            sys.modules.update(before)


def is_real(module: ModuleType) -> bool:
    return type(module) is ModuleType and getattr(module, "__file__", None) == REAL[module.__name__].__file__


def uvloop() -> Any:  # noqa: ANN401 - the attributes that a test has put there
    return sys.modules["uvloop.loop"]


def test_what_uvloop_reads_today_imports_none_of_the_modules() -> None:
    """The names that the supported versions read are those of the stand-ins, of the same kind and the same value."""
    with uvloop_that_runs(f"values = [{', '.join(BOUND)}]"):
        import_uvloop()
        assert sys.modules.keys().isdisjoint(REAL)
        for name, value in zip(BOUND, uvloop().values, strict=True):
            module, _, attribute = name.partition(".")
            real = getattr(REAL[module], attribute)
            if isinstance(real, int):
                assert value == real
            elif isinstance(real, type) and issubclass(real, Exception):
                assert issubclass(value, Exception)
            else:
                assert isinstance(value, type) == isinstance(real, type)
                assert callable(value)


@given(st.lists(st.sampled_from(BOUND + ANY_NAME), max_size=8), st.frozensets(st.sampled_from(sorted(REAL))))
def test_a_uvloop_may_read_any_name(names: list[str], imported: frozenset[str]) -> None:
    """Whatever names it reads, they are there; no stand-in is left in sys.modules, and no real module is replaced."""
    with uvloop_that_runs(f"values = [{', '.join(names)}]", imported=imported):
        import_uvloop()
        assert len(uvloop().values) == len(names)
        for name, real in REAL.items():
            assert is_real(importlib.import_module(name))
            assert name not in imported or sys.modules[name] is real
        for name, value in zip(names, uvloop().values, strict=True):
            module, _, attribute = name.partition(".")
            assert module not in imported or value is getattr(REAL[module], attribute)


@pytest.mark.parametrize(
    "body",
    [
        "ssl.SSLContext.sslsocket_class",
        "context = ssl.create_default_context()\nassert context.verify_mode is ssl.CERT_REQUIRED",
        "class Context(ssl.SSLContext): pass\nContext(ssl.PROTOCOL_TLS_CLIENT).set_alpn_protocols(['smtp'])",
        "assert issubclass(ssl.SSLWantReadError, ssl.SSLError)",
        "import sys\nassert type(sys.modules['ssl']) is type(sys)",
    ],
)
def test_a_uvloop_that_needs_more_gets_the_real_ssl(body: str) -> None:
    """A name or a use beyond those of the supported versions is met by the real module, which is imported then."""
    with uvloop_that_runs(body):
        import_uvloop()
        assert is_real(sys.modules["ssl"])


def test_a_uvloop_that_cannot_be_imported_raises_its_own_error() -> None:
    """A fault that no module cures is reported as uvloop raised it, and sys.modules is as it was."""
    with uvloop_that_runs("raise ImportError('built for another interpreter')"):
        with pytest.raises(ImportError, match="built for another interpreter"):
            import_uvloop()
        assert "uvloop" not in sys.modules
        assert is_real(importlib.import_module("ssl"))


def _function() -> None: ...


async def _coroutine_function() -> None: ...


class _Methods:
    def method(self) -> None: ...

    async def coroutine_method(self) -> None: ...

    async def __call__(self) -> None: ...


FUNCTIONS = [
    *(_function, _coroutine_function, _Methods().method, _Methods().coroutine_method, _Methods(), _Methods),
    *(functools.partial(_function), functools.partial(_coroutine_function), functools.partial(_Methods().method)),
    *(print, len, lambda: None, None, 521),
]


@pytest.mark.parametrize("imported", [frozenset[str](), frozenset({"inspect"})], ids=["deferred", "imported"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: getattr(function, "__qualname__", repr(function)))
def test_coroutine_functions_are_recognized_as_inspect_does(
    function: Callable[..., object], imported: frozenset[str]
) -> None:
    """The function that tells uvloop which signal handlers to refuse returns what the real one does."""
    with uvloop_that_runs("ask = inspect.iscoroutinefunction, inspect.isgenerator", imported=imported):
        import_uvloop()
        is_coroutine_function, is_generator = uvloop().ask
        assert is_coroutine_function(function) is inspect.iscoroutinefunction(function)
        assert is_generator(function) is inspect.isgenerator(function)
        assert is_generator(part for part in "generator")
