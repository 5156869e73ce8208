"""uvloop, imported without modules that it and asyncio name and a server without TLS never uses.

uvloop imports `ssl`, `inspect` and `subprocess`, and reads a few names of each; asyncio imports `textwrap` and
`tokenize` by way of `traceback`, for the source lines in a traceback. OpenSSL alone is a fifth of an idle server's
memory, and loading them all is a fifth of the time to start. So stand-ins with those few names are in `sys.modules`
while asyncio and uvloop are imported, and at no other time: a later import of `ssl`, by any code, gets the real module.
asyncio does without `ssl`, as on an interpreter that was built without OpenSSL.

The consequence: neither uvloop nor asyncio offers TLS in a process that called `import_uvloop` before it imported
`ssl`. Only the commands call it, so nothing changes for a program that imports nullsmtpd as a library. A module that
was imported earlier is never replaced.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = ["import_uvloop", "new_event_loop"]

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE, code.h: the flag of `async def`


def new_event_loop() -> "asyncio.AbstractEventLoop":
    """Return a new uvloop event loop."""
    import_uvloop()
    import uvloop

    return uvloop.new_event_loop()


def import_uvloop() -> None:
    """Import asyncio and uvloop, and none of the modules above that was not imported before.

    To have an effect this comes before the first import of asyncio. Raises `ImportError` when there is no uvloop.
    """
    if "uvloop" in sys.modules:
        return
    with _in_sys_modules(_inspect(), _subprocess(), _StandIn("textwrap"), _StandIn("tokenize")):
        with _importing_fails("ssl"):
            import asyncio  # noqa: F401
        # An unknown version of uvloop may do what a stand-in cannot do. Then it is imported once more, without any.
        with _in_sys_modules(_ssl()), suppress(Exception):
            import uvloop
    if "uvloop" not in sys.modules:
        for name in [name for name in sys.modules if name.startswith("uvloop.")]:
            del sys.modules[name]
        import uvloop  # noqa: F401


class _StandIn(ModuleType):
    """A module with a few names of a real one, which is imported when any other of its names is read.

    asyncio and `traceback` keep references to stand-ins; by them their functions reach the real modules when they run.
    """

    def __init__(self, name: str, **attributes: object) -> None:
        super().__init__(name)
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> object:
        return getattr(_real(self.__name__), name)


def _real(name: str) -> Any:  # noqa: ANN401 - a module, of which type checkers know no attributes
    """Return the real module, imported if need be. Raises `AttributeError` when this interpreter does not have it."""
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    try:
        return __import__(name)
    except ImportError as error:  # an interpreter without OpenSSL
        raise AttributeError(str(error)) from error


def _ssl() -> ModuleType:
    """Return a stand-in with what uvloop 0.22 and 0.23 bind: types to compare with, exceptions to catch, constants."""
    names = ("SSLContext", "MemoryBIO")
    errors = ("SSLError", "SSLWantReadError", "SSLSyscallError", "SSLZeroReturnError", "CertificateError")
    constants = {"SSL_ERROR_WANT_READ": 2, "SSL_ERROR_WANT_WRITE": 3, "SSL_ERROR_SYSCALL": 5}  # <openssl/ssl.h>
    return _StandIn(
        "ssl",
        create_default_context=_deferred("ssl", "create_default_context"),
        **{name: type(name, (), {"__module__": "ssl"}) for name in names},
        **{name: type(name, (OSError,), {"__module__": "ssl"}) for name in errors},
        **constants,
    )


def _inspect() -> ModuleType:
    isgenerator = _deferred("inspect", "isgenerator")
    return _StandIn("inspect", isgenerator=isgenerator, iscoroutinefunction=_iscoroutinefunction)


def _subprocess() -> ModuleType:
    error = type("SubprocessError", (Exception,), {"__module__": "subprocess"})
    return _StandIn("subprocess", PIPE=-1, STDOUT=-2, DEVNULL=-3, SubprocessError=error)


def _deferred(module: str, name: str) -> Callable[..., object]:
    """Return a function that imports the module when it is called, and calls its function of this name."""

    def call(*args: object, **kwargs: object) -> object:
        return getattr(_real(module), name)(*args, **kwargs)

    return call


def _iscoroutinefunction(function: object) -> bool:
    """Do what the function of `inspect` does, without importing it for a plain function or method.

    uvloop asks this of every signal handler that it adds. Only `inspect` itself can mark a plain function as one that
    returns a coroutine, so once that is imported it is the one to ask.
    """
    code = getattr(function, "__code__", None)
    if "inspect" in sys.modules or not isinstance(code, CodeType):
        return bool(_real("inspect").iscoroutinefunction(function))
    return bool(code.co_flags & _CO_COROUTINE)


@contextmanager
def _in_sys_modules(*modules: ModuleType) -> Iterator[None]:
    """Have the modules in `sys.modules` until the end of the block, but for those whose names are there already."""
    added = [module for module in modules if sys.modules.setdefault(module.__name__, module) is module]
    try:
        yield
    finally:
        for module in added:
            if sys.modules.get(module.__name__) is module:  # or it has given way to the real module
                del sys.modules[module.__name__]


@contextmanager
def _importing_fails(name: str) -> Iterator[None]:
    """Let importing a module fail until the end of the block, unless it was imported earlier."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment] # makes the import statement raise ImportError
    try:
        yield
    finally:
        del sys.modules[name]
