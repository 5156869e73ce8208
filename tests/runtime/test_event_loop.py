"""uvloop without OpenSSL in real interpreters: what is loaded, what works afterwards, and every supported version."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from name_server import name_server
from scrapes import WITH_METRICS, scrape
from support import MODES, Start, connect, read_all, require

ROOT = Path(__file__).parents[2]

#: Programs start with this: a loop in use for a signal, as the daemon has it.
LOOP = """
import signal, sys
from nullsmtpd.runtime.event_loop import import_uvloop

import_uvloop()
import uvloop
loop = uvloop.new_event_loop()
loop.add_signal_handler(signal.SIGUSR1, lambda: None)
"""


def run_python(code: str, *, path: Path | None = None) -> str:
    """Run a program in an interpreter of its own, with the modules in ``path``; return what it printed."""
    paths = [str(one) for one in (path, ROOT) if one]
    code = f"import sys\nsys.path[:0] = {paths}\n{code}"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_openssl_is_not_loaded() -> None:
    """A process with an event loop has neither the deferred modules nor any part of OpenSSL, and asyncio knows that."""
    code = f"""{LOOP}
print([name for name in ("ssl", "_ssl", "_hashlib", "inspect", "subprocess", "textwrap") if name in sys.modules])
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print("libssl" in maps or "libcrypto" in maps)
import asyncio
print(asyncio.base_events.ssl, asyncio.selector_events.ssl, asyncio.sslproto.ssl)
"""
    assert run_python(code).splitlines() == ["[]", "False", "None None None"]


def test_real_modules_work_afterwards() -> None:
    """Code that imports one of the modules later gets the real one, and asyncio's own functions that need one work."""
    code = f"""{LOOP}
import asyncio, ssl, subprocess

async def main():
    echo = await asyncio.create_subprocess_exec("echo", "started", stdout=subprocess.PIPE)
    print((await echo.communicate())[0].decode().strip())
    print(asyncio.iscoroutinefunction(main), asyncio.format_helpers.extract_stack().__class__.__name__)

loop.run_until_complete(main())
print(ssl.create_default_context().verify_mode.name)
import inspect
print(inspect.signature(import_uvloop))
asyncio.new_event_loop().close()

import traceback

try:
    exec(compile("1 +", "", "exec"))
except SyntaxError as error:
    print(traceback.format_exception(ExceptionGroup("a group", [error]))[-2])
"""
    started, answers, verify_mode, signature, *group = run_python(code).splitlines()
    assert started == "started"
    assert answers == "True StackSummary"
    assert verify_mode == "CERT_REQUIRED"
    assert signature.startswith("() -> ")
    assert group == ["    | SyntaxError: invalid syntax"]


def test_tls_works_when_ssl_was_imported_first() -> None:
    """A program that imports `ssl` before the loop has TLS: no module that is there is replaced."""
    code = f"""
import ssl
{LOOP}
import asyncio

context = ssl.create_default_context()
async def main():
    (await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=context)).close()

loop.run_until_complete(main())
print(ssl is sys.modules["ssl"], asyncio.base_events.ssl is ssl)
"""
    assert run_python(code) == "True True"


def test_importing_the_library_changes_nothing() -> None:
    """Every module of the package may be imported: what asyncio then has is the real thing."""
    code = """
import pkgutil, sys
import nullsmtpd

for module in pkgutil.walk_packages(nullsmtpd.__path__, "nullsmtpd."):
    if module.name != "nullsmtpd.__main__":  # which takes the process's signals
        __import__(module.name)
import asyncio, inspect, ssl, subprocess
print(asyncio.base_events.ssl is ssl, asyncio.coroutines.inspect is inspect, asyncio.events.subprocess is subprocess)
"""
    assert run_python(code) == "True True True"


def _supported_versions() -> list[str]:
    """Return the released versions of uvloop that the package's metadata allows, the oldest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = re.findall(r"^uvloop>=([\d.]+)$", "\n".join(project["dependencies"]), re.MULTILINE)[0]
    listed = _pip("index", "versions", "uvloop").stdout
    versions = re.findall(r"[\d.]+", re.findall(r"^Available versions: (.*)$", listed, re.MULTILINE)[0])

    def key(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    return sorted((version for version in versions if key(version) >= key(lowest)), key=key)


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"pip {arguments[0]}: {done.stderr[-500:]}")
    return done


#: Serves one client, and prints what the stand-ins were taken for.
SERVE = f"""{LOOP}
import asyncio

class Greeter(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"521 Host does not accept mail\\r\\n")
        transport.close()

async def main():
    server = await loop.create_server(Greeter, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    print((await reader.read()).decode().strip())
    writer.close()
    server.close()

loop.run_until_complete(main())
print(uvloop.__version__)
print([name for name in ("ssl", "inspect", "subprocess") if name in sys.modules])
"""

#: Takes away each of these names from its stand-in, in a process of its own: it is resolved, or reading it fails.
WITHOUT_A_NAME = """
import os
from nullsmtpd.runtime import event_loop

for read in READ:
    module, _, name = read.partition(".")
    for resolves in [True, False] if module == "ssl" else [True]:
        child = os.fork()
        if not child:
            stand_ins = event_loop._stand_ins()
            del vars(stand_ins[module])[name]
            if not resolves:
                type(stand_ins[module]).__getattr__ = lambda stand_in, name: {}[name]
            event_loop._stand_ins = lambda: stand_ins
            event_loop.import_uvloop()
            os._exit(module not in sys.modules)
        print(read, resolves, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def _names_read(directory: Path) -> set[str]:
    """Return what the uvloop in a directory reads of the three modules, by its source, which is installed with it."""
    source = (directory / "uvloop/includes/stdlib.pxi").read_text()
    return set(re.findall(r"\b(?:ssl|inspect|subprocess)\.\w+", source))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the directories that the supported versions of uvloop were installed in."""
    directories = {version: tmp_path_factory.mktemp(f"uvloop-{version}") for version in _supported_versions()}
    for version, directory in directories.items():
        _pip("install", "--quiet", "--no-deps", f"--target={directory}", f"uvloop=={version}")
    return directories


def test_every_supported_version_of_uvloop_works_without_openssl(installed: dict[str, Path]) -> None:
    """From the oldest version allowed to the newest released, a server runs and none of the real modules is loaded."""
    assert installed
    for version, directory in installed.items():
        assert run_python(SERVE, path=directory).splitlines() == ["521 Host does not accept mail", version, "[]"]


def test_every_supported_version_of_uvloop_falls_back_to_the_real_modules(installed: dict[str, Path]) -> None:
    """With any single name less in a stand-in, as if that version needed one more, the real module is imported.

    Both when the stand-in resolves the name and when uvloop's import fails half-way and is done once more.
    """
    for directory in installed.values():
        read = sorted(_names_read(directory))
        results = run_python(f"READ = {read}\n{WITHOUT_A_NAME}", path=directory).splitlines()
        assert len(results) > len(read)
        assert not [line for line in results if not line.endswith(" 0")]


def test_stand_ins_have_the_names_that_supported_versions_read_and_no_others(installed: dict[str, Path]) -> None:
    """Once no supported version reads a name any more, it is to be removed."""
    code = """
from nullsmtpd.runtime.event_loop import _stand_ins

print([f"{module}.{name}" for module, one in _stand_ins().items() for name in vars(one) if not name.startswith("__")])
"""
    read = set().union(*map(_names_read, installed.values()))
    assert set(ast.literal_eval(run_python(code))) == read


@pytest.mark.parametrize("mode", MODES)
def test_the_responder_does_not_load_openssl(mode: str, start: Start) -> None:
    """Neither for a client nor for a scrape."""
    require(sys.platform == "linux", "Linux's /proc")
    daemon = start("--mode", mode, *WITH_METRICS)
    with connect(daemon.address) as client:
        client.sendall(b"QUIT\r\n")
        assert read_all(client)
    assert scrape(daemon)
    assert "libcrypto" not in Path(f"/proc/{daemon.pid}/maps").read_text()


def test_the_relay_does_not_load_openssl(start: Start) -> None:
    """Neither for a client nor for DNS, also with an internationalized domain among the options."""
    require(sys.platform == "linux", "Linux's /proc")
    with name_server() as server:
        daemon = start("relay", "--resolver", server.flag, "--except", "bücher.example")
        with connect(daemon.address) as client, client.makefile("rb") as replies:
            client.sendall(b"19:nullmx null.example,20:nullmx plain.example,")
            expected = b"41:OK 556 5.1.10 Domain does not accept mail,9:NOTFOUND ,"
            assert replies.read(len(expected)) == expected
        assert "libcrypto" not in Path(f"/proc/{daemon.pid}/maps").read_text()


def test_check_does_not_load_openssl_to_ask_dns() -> None:
    """Neither for asyncio nor for dnspython, also when a domain is internationalized."""
    with name_server() as server:
        server.mx["xn--bcher-kva.example"] = ["0 ."]
        code = f"""
from nullsmtpd.cli.check import run

print(run(["--domain", "bücher.example", "--resolver", "{server.flag}"], {{}}))
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print([name for name in ("ssl", "_ssl", "_hashlib") if name in sys.modules], "libcrypto" in maps)
"""
        assert run_python(code).splitlines()[-2:] == ["0", "[] False"]


def test_dnspython_signs_with_the_real_hash_functions() -> None:
    """A stand-in that is called loads them, and gives what an interpreter without stand-ins does."""
    code = """
import dns.message
import dns.tsig

query = dns.message.make_query("a.example", "MX", id=1)
query.use_tsig(dns.tsig.Key("key.example", "c2VjcmV0", "hmac-sha256"))
dns.message.time.time = lambda: 1e9
query.to_wire()
print(len(query.tsig[0].mac), query.tsig[0].mac.hex())
"""
    stand_ins = (
        'from nullsmtpd.runtime.event_loop import import_without_openssl\nimport_without_openssl("dns.message")\n'
    )
    signed = run_python(stand_ins + code)
    assert signed.startswith("32 ")
    assert signed == run_python(code)
