"""The container image: its contents, how it runs with minimal privileges, and every option inside it."""

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from containers import ROOT, build_image, podman, running_container
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hosts import Host, open_host
from measure import HEADER, drop_page_cache
from name_server import name_server
from support import LINE, PATIENCE, Daemon, Start, connect, read_all, require_root, require_tools

import nullsmtpd

#: Limits of the image, in MB of 10^6 octets: on disk, and compressed as registries store it.
MAX_SIZE, MAX_COMPRESSED = 14.5, 5.7
#: Limit of its RSS, in KiB: 17.5 MB.
MAX_RESIDENT = 17_500_000 // 1024

MODES = ("close", "session", "mail")

SBOM = "usr/share/sbom/nullsmtpd.cdx.json"

#: The test's own network: a container with it listens where the test can connect, without any address translation.
OURS = ("--network=host",)
LOOPBACK = ("--listen", "127.0.0.1:0")

Run = Callable[..., tuple[Daemon, str]]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_root()
    require_tools("podman")
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def image(secrets: Path) -> str:
    return build_image("plain", secrets, "--label=org.opencontainers.image.source=https://example.org/nullsmtpd")


@pytest.fixture(scope="module")
def relay_image(secrets: Path) -> str:
    return build_image("relay", secrets, "--build-arg=EXTRAS=relay")


@pytest.fixture(scope="module")
def root(image: str) -> Iterator[Path]:
    """Return the directory with the image's files."""
    yield Path(podman("image", "mount", image))
    podman("image", "unmount", image)


@pytest.fixture
def host() -> Iterator[Host]:
    """Return a network namespace: publishing a port changes the packet filter of the network that it is in."""
    require_tools("nsenter", "unshare", "iptables")
    with open_host() as host:
        yield host


@pytest.fixture
def run(image: str, tmp_path: Path) -> Iterator[Run]:
    """Return a function that runs the image, or ``of``, and waits for its listening line."""
    with contextlib.ExitStack() as stack:

        def run_container(
            *arguments: str,
            of: str = image,
            with_: tuple[str, ...] = OURS,
            prefix: tuple[str, ...] = (),
            passed: tuple[socket.socket, ...] = (),
        ) -> tuple[Daemon, str]:
            log_path = tmp_path / f"{len(list(tmp_path.iterdir()))}.log"
            running = running_container(of, log_path, *arguments, options=with_, prefix=prefix, passed=passed)
            daemon, name = stack.enter_context(running)
            daemon.wait_for(daemon.addresses, "a listening line")
            return daemon, name

        yield run_container


def run_once(image: str, *arguments: str, with_: tuple[str, ...] = OURS) -> subprocess.CompletedProcess[str]:
    """Run a container until its command ends."""
    command = ["podman", "run", "--rm", "--read-only", "--cap-drop=ALL", "--no-healthcheck", *with_, image, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def answer(daemon: Daemon) -> bytes:
    """Return everything that a silent client receives."""
    with connect(daemon.address) as client:
        return read_all(client)


def first_line(daemon: Daemon) -> bytes:
    with connect(daemon.address) as client, client.makefile("rb") as lines:
        return lines.readline()


# Contents.


def test_labels_are_those_of_the_package(image: str) -> None:
    """The labels of the OCI image specification are set, with the package's version."""
    labels = json.loads(podman("image", "inspect", "--format={{json .Labels}}", image))
    ours = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert ours["version"] == nullsmtpd.__version__
    assert ours["source"] == "https://example.org/nullsmtpd"
    assert ours["licenses"] == "MIT"
    assert "521" in ours["description"]


def test_size_and_memory_are_within_their_limits(host: Host, image: str, secrets: Path) -> None:
    """The script that makes the table in deploy/image/README.md measures nullsmtpd and nginx. Times are not judged."""
    nginx = build_image("nginx", secrets, file="deploy/image/nginx.Dockerfile")
    table = host.run(sys.executable, str(ROOT / "deploy/image/measure.py"), image, nginx)
    assert table.startswith(HEADER)
    assert HEADER in (ROOT / "deploy/image/README.md").read_text()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.removeprefix(HEADER).splitlines()]
    assert [name for name, *_ in rows] == [image, nginx]
    figures = [[float(cell.replace(",", "")) for cell in cells] for _, *cells in rows]
    size, compressed, resident, anonymous, _start = figures[0]
    assert size <= MAX_SIZE
    assert compressed <= MAX_COMPRESSED
    assert anonymous <= resident <= MAX_RESIDENT
    assert all(figures[1])


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ((), 2, "usage: measure.py IMAGE...\n"),
        (("--help",), 2, "usage: measure.py IMAGE...\n"),
        (("no-such-image",), 1, "measure.py: Error: .*no-such-image.*\n"),
    ],
)
def test_measuring_what_is_no_image_is_one_clear_line(arguments: tuple[str, ...], status: int, message: str) -> None:
    """The script reports what podman reports, without a traceback."""
    require_root()
    require_tools("podman")
    command = [sys.executable, str(ROOT / "deploy/image/measure.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == status
    assert re.fullmatch(message, done.stderr)


#: What is in the image beside Python modules and package metadata, without version numbers.
LIBRARIES = {"ld-linux", "libc", "libexpat", "libm", "libpthread", "librt", "libz"}
EXTENSIONS = {"_asyncio", "_contextvars", "_json", "_queue", "_typing", "loop", "resource"}


def test_image_contains_no_openssl(root: Path) -> None:
    """Its shared libraries and extension modules are those listed; no part of OpenSSL is among them."""
    binaries = {path for path in root.rglob("*.so*") if not path.is_symlink()}
    extensions = {path for path in binaries if "python3" in str(path)}
    assert {
        path.name.split(".")[0].partition("-x86")[0].partition("-aarch")[0] for path in binaries - extensions
    } == LIBRARIES
    assert {path.name.split(".")[0] for path in extensions} == EXTENSIONS
    names = {path.name for path in root.rglob("*")}
    assert not [name for name in names if name.startswith(("libssl", "libcrypto", "_ssl.", "_hashlib.", "ssl."))]


def test_image_contains_modules_and_metadata_only(root: Path) -> None:
    """Every other file is a compiled module, or one of the few that name users, licences and packages."""
    files = {path.relative_to(root) for path in root.rglob("*") if path.is_file() and not path.is_symlink()}
    others = {path for path in files if path.suffix != ".pyc" and ".so" not in path.name}
    allowed = ("etc/", "usr/bin/", "usr/lib/os-release", "usr/share/doc/", "usr/share/sbom/", "var/lib/dpkg/status.d/")
    rest = {path for path in others if not str(path).startswith(allowed)}
    assert all(path.parts[-2].endswith((".dist-info", "licenses")) for path in rest)
    assert {path.name for path in files if path.parts[0] == "etc"} == {"group", "nsswitch.conf", "passwd"}


def test_its_only_programs_are_the_interpreter_and_the_command(root: Path) -> None:
    """There is no shell, no source, and nothing that runs as another user or that others may write to."""
    programs = {path.name for path in (root / "usr/bin").iterdir()}
    interpreter = (root / "usr/bin/python3").readlink().name
    assert programs == {"nullsmtpd", "python3", interpreter}
    assert not list(root.rglob("*.py"))
    assert not [path for path in root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o6002]


def test_files_of_debian_packages_are_unchanged(root: Path) -> None:
    """Every checksum in the package metadata is that of the file, and every binary of a package has one."""
    sums = [line for path in root.glob("var/lib/dpkg/status.d/*.md5sums") for line in path.read_text().splitlines()]
    for checksum, name in (line.split(maxsplit=1) for line in sums):
        assert hashlib.md5((root / name).read_bytes(), usedforsecurity=False).hexdigest() == checksum, name
    named = {Path(line).name for line in sums}
    binaries = {path.name for path in root.rglob("*.so*") if not path.is_symlink() and "uvloop" not in path.parts}
    assert binaries < named
    assert (root / "usr/bin/python3").readlink().name in named


def test_bill_of_materials_is_valid_and_lists_every_component(root: Path) -> None:
    """It follows the schema of CycloneDX, and lists the packages whose metadata and files are in the image."""
    text = (root / SBOM).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    listed = {part["name"]: part["version"] for part in bill["components"]}
    product = bill["metadata"]["component"]
    assert (product["name"], product["version"]) == ("nullsmtpd-521", nullsmtpd.__version__)
    debian = dict(
        re.findall(r"^Package: (\S+)$.*?^Version: (\S+)$", status.read_text(), re.MULTILINE | re.DOTALL)[0]
        for status in (root / "var/lib/dpkg/status.d").iterdir()
        if status.suffix != ".md5sums"
    )
    python = {
        metadata.parent.name.split("-")[0]: metadata.parent.name.removesuffix(".dist-info").split("-")[1]
        for metadata in root.glob("usr/lib/python3*/*.dist-info/METADATA")
    }
    assert python.pop("nullsmtpd_521") == nullsmtpd.__version__
    assert listed == debian | python | {"libuv": listed["libuv"]}
    assert {"libc6", "libexpat1", "uvloop", "zlib1g"} <= listed.keys()
    assert not [name for name in listed if "ssl" in name]


def test_bill_of_materials_has_the_licence_of_every_component(root: Path) -> None:
    """SPDX identifiers where they are known, else the path of the file in the image that states the licence."""
    bill = json.loads((root / SBOM).read_text())
    licences = {part["name"]: part["licenses"] for part in [bill["metadata"]["component"], *bill["components"]]}
    assert licences["nullsmtpd-521"] == [{"expression": "MIT"}]
    assert licences["uvloop"] == [{"license": {"id": "Apache-2.0"}}, {"license": {"id": "MIT"}}]
    assert licences["libuv"] == licences["libexpat1"] == [{"license": {"id": "MIT"}}]
    assert licences["zlib1g"] == [{"license": {"id": "Zlib"}}]
    stated = [
        choice["license"]["name"]
        for choices in licences.values()
        for choice in choices
        if "name" in choice.get("license", {})
    ]
    assert stated
    for name in stated:
        assert (root / name.removeprefix("see /")).read_text()
    for package in licences.keys() - {"nullsmtpd-521", "uvloop", "libuv"}:
        assert (root / "usr/share/doc" / package / "copyright").read_text()


# Running it.


def test_it_serves_port_25_with_minimal_privileges(host: Host, root: Path, run: Run) -> None:
    """Published as in the README it answers on 25, its health check passes, and its RSS is within the limit."""
    drop_page_cache(root)
    _, name = run(with_=("--publish=127.0.0.1:25:2525",), prefix=host.prefix)
    assert host.run(sys.executable, "-c", READ_PORT_25) == ascii(LINE)
    podman("healthcheck", "run", name, prefix=host.prefix)
    process = podman("inspect", "--format={{.State.Pid}}", name)
    status = dict(re.findall(r"^(\w+):\t *(.*)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE))
    assert int(status["VmRSS"].split()[0]) <= MAX_RESIDENT
    assert status["Uid"].split() == ["65532"] * 4
    assert status["CapEff"] == status["CapBnd"] == "0" * 16
    assert status["NoNewPrivs"] == "1"
    # The status would not be 0 if it had to be killed after a second.
    podman("stop", "--time=1", name, prefix=host.prefix)
    assert podman("inspect", "--format={{.State.ExitCode}}", name) == "0"


READ_PORT_25 = """
import socket
with socket.create_connection(("127.0.0.1", 25), 20) as client:
    print(ascii(b"".join(iter(lambda: client.recv(4096), b""))), end="")
"""


def test_sigterm_ends_it_with_status_0(run: Run) -> None:
    """Signals have no default action for process 1 of a container, so it must have a handler."""
    daemon, _ = run(*LOOPBACK)
    assert daemon.stop() == 0
    assert daemon.lines("stats")


@pytest.mark.parametrize("mode", MODES)
def test_health_check_passes_in_every_mode(mode: str, run: Run) -> None:
    """The responder and its health check read the mode from the same variable."""
    _, name = run(with_=("--network=none", f"--env=NULLSMTPD_MODE={mode}"))
    podman("healthcheck", "run", name)


def test_health_check_connects_to_the_address_in_the_environment(run: Run) -> None:
    """The check connects to NULLSMTPD_LISTEN, and fails when nothing listens there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _, name = run(with_=(*OURS, f"--env=NULLSMTPD_LISTEN=127.0.0.1:{port}"))
    podman("healthcheck", "run", name)
    _, name = run(*LOOPBACK, with_=(*OURS, f"--env=NULLSMTPD_LISTEN=127.0.0.1:{port + 1}"))
    assert subprocess.run(["podman", "healthcheck", "run", name], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("denied", [[], ["io_uring_setup", "io_uring_enter", "io_uring_register"]])
def test_it_runs_whether_or_not_the_engine_allows_io_uring(denied: list[str], run: Run, tmp_path: Path) -> None:
    """The event loop uses a ring when it can, and works without one when the seccomp profile denies it."""
    rules = [{"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}] if denied else []
    daemon, name = run(*LOOPBACK, with_=(*OURS, _seccomp(tmp_path, *rules)))
    assert answer(daemon) == LINE
    process = podman("inspect", "--format={{.State.Pid}}", name)
    rings = [path for path in Path(f"/proc/{process}/fd").iterdir() if "io_uring" in str(path.readlink())]
    assert bool(rings) == (not denied)


def test_it_runs_where_ipv6_is_switched_off(run: Run) -> None:
    """With IPv6 off in the container's network, its health check passes by IPv4."""
    _, name = run(with_=("--network=none", "--sysctl=net.ipv6.conf.all.disable_ipv6=1"))
    podman("healthcheck", "run", name)


def test_it_runs_where_the_kernel_has_no_ipv6(run: Run, tmp_path: Path) -> None:
    """Where IPv6 sockets cannot be created, it listens on all IPv4 addresses."""
    no_ipv6 = {"index": 0, "value": socket.AF_INET6, "op": "SCMP_CMP_EQ"}
    denied = {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EAFNOSUPPORT, "args": [no_ipv6]}
    daemon, name = run(with_=("--network=none", _seccomp(tmp_path, denied)))
    assert daemon.addresses() == [("0.0.0.0", 2525)]  # noqa: S104
    podman("healthcheck", "run", name)


def _seccomp(directory: Path, *denied: dict[str, Any]) -> str:
    """Return the option for a profile that allows everything except the system calls given."""
    profile = directory / "seccomp.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": denied}))
    return f"--security-opt=seccomp={profile}"


def test_without_a_network_it_answers_on_an_inherited_socket(run: Run) -> None:
    """A service manager's socket is passed on by podman to a container that has no other network."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        daemon, name = run(with_=("--network=none", "--no-healthcheck"), passed=(listener,))
        assert answer(daemon) == LINE
        interfaces = podman("exec", name, "/usr/bin/python3", "-c", "import socket; print(socket.if_nameindex())")
        assert interfaces == "[(1, 'lo')]"
        assert daemon.stop() == 0


def test_names_are_looked_up_and_encoded_in_it(image: str) -> None:
    """Modules and files that are loaded only when needed are there: name codecs, and the C library's configuration."""
    code = "import encodings.idna, socket; print(socket.getaddrinfo('localhost', 25)[0][4], 'bücher'.encode('idna'))"
    done = run_once(image, "-c", code, with_=("--network=none", "--entrypoint=/usr/bin/python3"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in (f"{('127.0.0.1', 25)} b'xn--bcher-kva'\n", f"{('::1', 25, 0, 0)} b'xn--bcher-kva'\n")


def test_python_m_is_the_same_command(image: str) -> None:
    """The module can be run instead of the command."""
    done = run_once(image, "-m", "nullsmtpd", "--version", with_=("--entrypoint=/usr/bin/python3",))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nullsmtpd {nullsmtpd.__version__}\n", "")


# Every option.


class Trial(NamedTuple):
    """An option's value, ``""`` for a boolean; its effect; and the other options and podman's that this takes."""

    value: str
    has_effect: Callable[[Daemon, str], object]
    beside: tuple[str, ...] = LOOPBACK
    with_: tuple[str, ...] = OURS


#: Started as root, with only the capabilities to drop privileges.
AS_ROOT = (*OURS, "--user=0:0", "--cap-add=SETUID", "--cap-add=SETGID")


def _second_gets_mode_close(daemon: Daemon, _name: str) -> bool:
    with connect(daemon.address) as first, first.makefile("rb") as lines:
        return lines.readline() == LINE and answer(daemon) == LINE


def _lingering_is_zero(daemon: Daemon, _name: str) -> bool:
    with connect(daemon.address) as client:
        return read_all(client) == LINE and daemon.stats()["lingering"] == "0"


def _backlog(daemon: Daemon) -> str:
    shown = subprocess.run(
        ["ss", "-Hltn", f"sport = :{daemon.address[1]}"], capture_output=True, text=True, check=True
    ).stdout
    return shown.split()[2]


def _port_can_be_shared(daemon: Daemon, _name: str) -> bool:
    address = daemon.address
    os.seteuid(65532)  # ports are shared by processes of one user only
    try:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(address)
    finally:
        os.seteuid(0)
    return answer(daemon) == LINE


def _identity(name: str, what: str) -> set[str]:
    return set(podman("top", name, what).split("\n")[1:])


def _access_lines(daemon: Daemon, _name: str) -> list[str]:
    assert answer(daemon) == LINE
    daemon.wait_for(lambda: daemon.lines("connection"), "an access line")
    return daemon.lines("connection")


def _scrape(daemon: Daemon, _name: str) -> bool:
    found = re.search(r" metrics address=127\.0\.0\.1:(\d+)$", daemon.log, re.MULTILINE)
    assert found
    with connect(("127.0.0.1", int(found[1]))) as reader:
        reader.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return b"\nnullsmtpd_connections_total " in read_all(reader)


TRIALS = {
    "listen": Trial("localhost:0", lambda daemon, _: answer(daemon) == LINE and daemon.address[1] != 2525, beside=()),
    "mode": Trial("mail", lambda daemon, _: first_line(daemon).startswith(b"220 ")),
    "text": Trial("Gone fishing", lambda daemon, _: answer(daemon) == b"521 Gone fishing\r\n"),
    "hostname": Trial(
        "host.example",
        lambda daemon, _: first_line(daemon) == b"220 host.example ESMTP\r\n",
        beside=(*LOOPBACK, "--mode", "mail"),
    ),
    "linger": Trial("0", _lingering_is_zero),
    "max-lingering": Trial(
        "100",
        lambda daemon, _: "wanted=100 " in daemon.lines("max-lingering-lowered")[0],
        with_=(*OURS, "--ulimit=nofile=64:64", "--ulimit=nproc=1024:1024"),
    ),
    "max-sessions": Trial("1", _second_gets_mode_close, beside=(*LOOPBACK, "--mode", "session")),
    "timeout": Trial("1", lambda daemon, _: answer(daemon).startswith(LINE), beside=(*LOOPBACK, "--mode", "session")),
    "backlog": Trial("17", lambda daemon, _: _backlog(daemon) == "17"),
    "reuse-port": Trial("", _port_can_be_shared),
    "user": Trial("nobody", lambda _, name: _identity(name, "user") == {"nobody"}, with_=AS_ROOT),
    "group": Trial("nogroup", lambda _, name: _identity(name, "group") == {"nogroup"}, with_=AS_ROOT),
    "access-log": Trial("", _access_lines),
    "metrics": Trial("127.0.0.1:0", _scrape),
}


def test_every_option_has_a_trial(image: str) -> None:
    """The options in each command's help are those tried below."""
    tried = {
        "": {*TRIALS},
        "check": {*CHECKS},
        "relay": {flag.removeprefix("--") for flag in (*RELAY[::2], "resolver")},
    }
    for command, names in tried.items():
        shown = run_once(image, *command.split(), "--help").stdout
        assert set(re.findall(r"^  (?:-\w, )?--([\w-]+)", shown, re.MULTILINE)) == {*names, "help", "version"}


@pytest.mark.parametrize("name", TRIALS)
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_every_option_works_in_the_image(by: str, name: str, image: str, run: Run) -> None:
    """Given as an argument or in the environment, an option has the same effect in the image as elsewhere."""
    trial = TRIALS[name]
    flag = (f"--{name}", trial.value) if trial.value else (f"--{name}",)
    variable = f"--env=NULLSMTPD_{name.upper().replace('-', '_')}={trial.value or 'yes'}"
    if by == "flag":
        daemon, container = run(*trial.beside, *flag, with_=trial.with_)
    else:
        daemon, container = run(*trial.beside, with_=(*trial.with_, variable))
    assert trial.has_effect(daemon, container)
    assert daemon.stop() == 0


@pytest.mark.parametrize("arguments", [(), ("check",), ("relay",)], ids=["responder", "check", "relay"])
def test_help_and_version_work_in_the_image(arguments: tuple[str, ...], image: str) -> None:
    """Each command prints its help and its version."""
    shown = run_once(image, *arguments, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: nullsmtpd")
    shown = run_once(image, *arguments, "--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"nullsmtpd {nullsmtpd.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [("relay",), ("check", "--domain", "example.org"), ("--linger", "long")],
)
def test_a_missing_extra_or_an_invalid_value_is_one_line(arguments: tuple[str, ...], image: str) -> None:
    """A command or an option that needs the extra `relay` is refused like an invalid value, without a traceback."""
    done = run_once(image, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"nullsmtpd[^\n]*: [^\n]+\n", done.stderr)


#: Options of check, and what each adds to the report. ``port`` is that of a responder in mode mail.
_HOST_EXAMPLE = ("--domain", "host.example", "--resolver", "{resolver}", "--port", "{port}", "--allow-private")
CHECKS = {
    "timeout": (("127.0.0.1:{port}", "--mode", "mail", "--timeout", "19"), "good: "),
    "early": (("127.0.0.1:{port}", "--mode", "mail", "--early"), "good: "),
    "mode": (("127.0.0.1:{port}", "--mode", "mail"), "'220 host.example ESMTP"),
    "json": (("127.0.0.1:{port}", "--mode", "mail", "--json"), '{"good": true, '),
    "port": (("127.0.0.1", "--mode", "mail", "--port", "{port}"), ":{port} good: "),
    "domain": (("--domain", "null.example", "--resolver", "{resolver}"), "null.example good: "),
    "sends": ((*_HOST_EXAMPLE, "--sends"), "host.example good: "),
    "strict": ((*_HOST_EXAMPLE, "--strict"), "host.example good: "),
    "allow-private": (_HOST_EXAMPLE, "host.example 127.0.0.1:{port} good: "),
    "resolver": (("--domain", "null.example", "--resolver", "{resolver}"), "null.example MX: 0 . "),
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_option_of_check_works_in_the_image(name: str, start: Start, request: pytest.FixtureRequest) -> None:
    """A host that refuses mail and a domain with a null MX pass."""
    image = request.getfixturevalue("relay_image" if "--domain" in CHECKS[name][0] else "image")
    _, port = start("--mode", "mail", "--hostname", "host.example").address
    arguments, shown = CHECKS[name]
    with name_server() as server:
        server.addresses["host.example"], server.texts["host.example"] = ["127.0.0.1"], ['"v=spf1 a -all"']
        done = run_once(image, "check", *(one.format(port=port, resolver=server.flag) for one in arguments))
    assert (done.returncode, done.stderr) == (0, "")
    assert shown.replace("{port}", str(port)) in done.stdout


def test_check_of_a_name_with_two_addresses_works_in_the_image(image: str, start: Start) -> None:
    """Several addresses are checked at the same time, which needs more modules."""
    _, port = start(listen=":0", count=2).address
    done = run_once(image, "check", f"127.0.0.1:{port}", f"[::1]:{port}")
    assert (done.returncode, done.stderr, done.stdout.count(" good: ")) == (0, "", 2)


RELAY = (
    *("--listen", "127.0.0.1:0", "--timeout", "3", "--cache", "10", "--max-sessions", "10"),
    *("--user", "nobody", "--group", "nogroup", "--except", "own.example", "--metrics", "127.0.0.1:0"),
)


def test_every_option_of_relay_works_in_the_image(run: Run, relay_image: str) -> None:
    """With all its options, the relay's server tells a null MX from another."""
    with name_server() as server:
        daemon, name = run("relay", *RELAY, "--resolver", server.flag, of=relay_image, with_=AS_ROOT)
        with connect(daemon.address) as client, client.makefile("rb") as answers:
            client.sendall(b"19:nullmx null.example,20:nullmx plain.example,")
            expected = b"41:OK 556 5.1.10 Domain does not accept mail,9:NOTFOUND ,"
            assert answers.read(len(expected)) == expected
        assert _identity(name, "user") == {"nobody"}
        assert daemon.stop() == 0


PINNED = r"^([\w-]+)==\S+((?: \\\n +--hash=sha256:[0-9a-f]{64})*)$"


def test_the_pinned_version_of_a_dependency_has_a_wheel_for_each_architecture() -> None:
    """There are hashes of uvloop for two architectures and two versions of Python, and of every other distribution."""
    for requirements in (ROOT / "deploy/image").glob("requirements*.txt"):
        for name, hashes in re.findall(PINNED, requirements.read_text(), re.MULTILINE):
            assert hashes.count("sha256") >= (4 if name == "uvloop" else 1), name
