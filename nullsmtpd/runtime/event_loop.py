"""uvloop and dnspython, imported without modules that they and asyncio name and a server without TLS never uses.

OpenSSL, by way of `ssl`, is a fifth of an idle server's memory; loading it with `inspect`, `subprocess`, `textwrap` and
`tokenize` is a fifth of the time to start. uvloop and asyncio read only a few names of them while they are imported, so
for that time stand-ins with these names are in `sys.modules`. A later import gets the real module, and a module that
was imported earlier is never replaced.

The consequence: a process that called `import_uvloop` before it imported `ssl` has no TLS in uvloop or asyncio. Only
the commands call it, so nothing changes for a program that imports nullsmtpd as a library.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import CodeType, GeneratorType, ModuleType
from typing import Any

__all__ = ["import_uvloop", "import_without_openssl"]

_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE, code.h: the flag of `async def`


def import_uvloop() -> None:
    """Import asyncio and uvloop, and none of the modules above that was not imported before.

    To have an effect this comes before the first import of asyncio. Raises `ImportError` when there is no uvloop.
    """
    if "uvloop" in sys.modules:
        return
    stand_ins = _stand_ins()
    _import("asyncio", {**stand_ins, "ssl": None})  # as on an interpreter without OpenSSL, which asyncio allows for
    # An unknown version of uvloop may do what a stand-in cannot do. Then it is imported once more, without any.
    with suppress(Exception):
        _import("uvloop", stand_ins)
    if "uvloop" not in sys.modules:
        for name in [name for name in sys.modules if name.startswith("uvloop.")]:
            del sys.modules[name]
        import uvloop  # noqa: F401


def import_without_openssl(module_name: str) -> None:
    """Import asyncio, or a module of dnspython, without OpenSSL. Raises `ImportError`.

    dnspython reads names of hash functions for signed messages (TSIG, RFC 8945). The stand-ins of those functions call
    the real ones, which load OpenSSL then.
    """
    names = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
    hashlib = _StandIn("hashlib", **{name: partial(_call_real, "hashlib", name) for name in names})
    _import(module_name, {"ssl": None, "hashlib": hashlib, "hmac": _StandIn("hmac")})


def _import(module_name: str, stand_ins: Mapping[str, ModuleType | None]) -> None:
    """Import a module; meanwhile `sys.modules` has those of the stand-ins whose names are not there."""
    added = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(added)  # type: ignore[arg-type] # None makes the import statement raise ImportError
    try:
        __import__(module_name)
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:  # not replaced by the real module
                sys.modules.pop(name, None)


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
    """Return the real module, imported if need be."""
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    return __import__(name)


def _call_real(module_name: str, name: str, *args: object, **kwargs: object) -> object:
    return getattr(_real(module_name), name)(*args, **kwargs)


def _stand_ins() -> dict[str, ModuleType]:
    """Return the stand-ins by name, with what uvloop 0.22 and 0.23 read of each; asyncio reads less."""
    errors = ("SSLError", "SSLWantReadError", "SSLSyscallError", "SSLZeroReturnError", "CertificateError")
    codes = {"SSL_ERROR_WANT_READ": 2, "SSL_ERROR_WANT_WRITE": 3, "SSL_ERROR_SYSCALL": 5}  # <openssl/ssl.h>
    classes = {name: type(name, (), {}) for name in ("SSLContext", "MemoryBIO")}
    classes |= {name: type(name, (OSError,), {}) for name in errors}
    create_context = partial(_call_real, "ssl", "create_default_context")
    ssl = _StandIn("ssl", create_default_context=create_context, **classes, **codes)
    inspect = _StandIn(
        "inspect",
        isgenerator=lambda value: isinstance(value, GeneratorType),
        iscoroutinefunction=_iscoroutinefunction,
    )
    subprocess_error = type("SubprocessError", (Exception,), {})
    subprocess = _StandIn("subprocess", PIPE=-1, STDOUT=-2, DEVNULL=-3, SubprocessError=subprocess_error)
    modules = (ssl, inspect, subprocess, _StandIn("textwrap"), _StandIn("tokenize"))
    return {module.__name__: module for module in modules}


def _iscoroutinefunction(function: object) -> bool:
    """Return what the function of `inspect` returns, for a plain function or method without importing `inspect`.

    uvloop calls it for every signal handler.
    """
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        return bool(code.co_flags & _CO_COROUTINE)
    return bool(_real("inspect").iscoroutinefunction(function))
