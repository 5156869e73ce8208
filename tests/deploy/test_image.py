"""The container image: what is in it, how it runs with next to no rights, and every option tried inside of it."""

import contextlib
import errno
import hashlib
import json
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
from measure import read_from_disk
from name_server import name_server
from support import LINE, PATIENCE, Daemon, Start, connect, read_all, require_root, require_tools

import nullsmtpd
from nullsmtpd.cli import check as check_options
from nullsmtpd.cli import relay as relay_options
from nullsmtpd.cli import responder as options
from nullsmtpd.relay.netstring import netstring

#: What the image may take, in MB of 10^6 octets: on a disk, and on its way from a registry, with layers compressed.
MAX_SIZE, MAX_COMPRESSED = 20, 8
#: And in memory, in KiB: 23 MB.
MAX_RESIDENT = 23_000_000 // 1024
#: Milliseconds until the first client has the line.
MAX_START = 100

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
def image_with_extras(secrets: Path) -> str:
    return build_image("extras", secrets, "--build-arg=EXTRAS=metrics,relay")


@pytest.fixture(scope="module")
def root(image: str) -> Iterator[Path]:
    """Return the directory where the image's files are."""
    yield Path(podman("image", "mount", image))
    podman("image", "unmount", image)


@pytest.fixture
def host() -> Iterator[Host]:
    """Return a network of the test's own: in the machine's, publishing a port would change its packet filter."""
    require_tools("nsenter", "unshare", "iptables")
    with open_host() as host:
        yield host


@pytest.fixture
def run(image: str, tmp_path: Path) -> Iterator[Run]:
    """Return a function that runs the image, or ``of``, and waits until it says where it listens."""
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
    """Run a container that ends by itself."""
    command = ["podman", "run", "--rm", "--read-only", "--cap-drop=ALL", "--no-healthcheck", *with_, image, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def answer(daemon: Daemon) -> bytes:
    """Return all that a silent client gets."""
    with connect(daemon.address) as client:
        return read_all(client)


def first_line(daemon: Daemon) -> bytes:
    with connect(daemon.address) as client, client.makefile("rb") as lines:
        return lines.readline()


# What is in it.


def test_labels_say_what_it_is_and_of_which_version(image: str) -> None:
    """The labels of the OCI's image specification are there, and the version is the package's."""
    labels = json.loads(podman("image", "inspect", "--format={{json .Labels}}", image))
    ours = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert ours["version"] == nullsmtpd.__version__
    assert ours["source"] == "https://example.org/nullsmtpd"
    assert ours["licenses"] == "MIT"
    assert "521" in ours["description"]


def test_it_is_small_as_the_table_in_the_readme_says(host: Host, image: str, secrets: Path) -> None:
    """The README's script measures it within the bounds above, and beside it an image of nginx made the same way."""
    yardstick = build_image("yardstick", secrets, file="deploy/image/nginx.Dockerfile")
    table = host.run(sys.executable, str(ROOT / "deploy/image/measure.py"), image, yardstick)
    head, _, *rows = table.splitlines()
    assert head in (ROOT / "README.md").read_text()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [name for name, *_ in cells] == [image, yardstick]
    ours, theirs = ([float(cell.split()[0].replace(",", "")) for cell in row[1:]] for row in cells)
    size, compressed, resident, proportional, start = ours
    assert size <= MAX_SIZE
    assert compressed <= MAX_COMPRESSED
    assert proportional <= resident <= MAX_RESIDENT
    assert start <= MAX_START  # the one figure here that is a time, and twice what it takes
    assert all(theirs)


def test_nothing_can_be_started_in_it_but_the_daemon(root: Path) -> None:
    """Its only programs are the interpreter and the command; there is no shell."""
    programs = {path.name for path in (root / "usr/bin").iterdir()}
    interpreter = (root / "usr/bin/python3").readlink().name
    assert programs == {"nullsmtpd", "python3", interpreter}
    assert not list(root.rglob("*.py"))
    assert not [path for path in root.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o6002]


def test_files_of_debian_packages_are_as_debian_made_them(root: Path) -> None:
    """Every checksum in the package metadata is that of the file."""
    sums = [line for path in root.glob("var/lib/dpkg/status.d/*.md5sums") for line in path.read_text().splitlines()]
    for checksum, name in (line.split(maxsplit=1) for line in sums):
        assert hashlib.md5((root / name).read_bytes(), usedforsecurity=False).hexdigest() == checksum, name
    names = " ".join(sums)
    assert all(f"{one} " in f"{names} " for one in ("libc.so.6", "libssl.so.3", "libcrypto.so.3"))
    assert "bin/python3" in names


def test_bill_of_materials_is_valid_and_names_every_component(root: Path) -> None:
    """It follows CycloneDX's schema, and lists the packages whose metadata and binaries are in the image."""
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
    assert {"libc6", "libssl3", "uvloop"} <= listed.keys()
    for package in debian:
        assert (root / "usr/share/doc" / package / "copyright").read_text()


# How it runs.


def test_port_25_of_a_host_with_next_to_no_rights(host: Host, root: Path, run: Run) -> None:
    """Published as the README says it answers on 25, its own check finds it well, and it takes little memory."""
    read_from_disk(root)
    _, name = run(with_=("--publish=127.0.0.1:25:2525",), prefix=host.prefix)
    assert host.run(sys.executable, "-c", READ_PORT_25) == ascii(LINE)
    podman("healthcheck", "run", name, prefix=host.prefix)
    process = podman("inspect", "--format={{.State.Pid}}", name)
    status = dict(re.findall(r"^(\w+):\t *(.*)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE))
    assert int(status["VmRSS"].split()[0]) <= MAX_RESIDENT
    assert status["Uid"].split() == ["65532"] * 4
    assert status["CapEff"] == status["CapBnd"] == "0" * 16
    assert status["NoNewPrivs"] == "1"
    # Killed after a second, it would not end with 0.
    podman("stop", "--time=1", name, prefix=host.prefix)
    assert podman("inspect", "--format={{.State.ExitCode}}", name) == "0"


READ_PORT_25 = """
import socket
with socket.create_connection(("127.0.0.1", 25), 20) as client:
    print(ascii(b"".join(iter(lambda: client.recv(4096), b""))), end="")
"""


def test_sigterm_ends_it_with_status_0(run: Run) -> None:
    """Process 1 of a container gets no default action for a signal, so it must take this one itself."""
    daemon, _ = run(*LOOPBACK)
    assert daemon.stop() == 0
    assert daemon.lines("stats")


@pytest.mark.parametrize("mode", options.MODES)
def test_health_check_knows_every_mode(mode: str, run: Run) -> None:
    """Set by its variable, a mode is what the responder speaks and what its check expects."""
    _, name = run(with_=("--network=none", f"--env=NULLSMTPD_MODE={mode}"))
    podman("healthcheck", "run", name)


def test_health_check_looks_where_the_environment_says(run: Run) -> None:
    """The check asks the address in NULLSMTPD_LISTEN, and fails when nobody answers there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    _, name = run(with_=(*OURS, f"--env=NULLSMTPD_LISTEN=127.0.0.1:{port}"))
    podman("healthcheck", "run", name)
    _, name = run(*LOOPBACK, with_=(*OURS, f"--env=NULLSMTPD_LISTEN=127.0.0.1:{port + 1}"))
    assert subprocess.run(["podman", "healthcheck", "run", name], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("denied", [[], ["io_uring_setup", "io_uring_enter", "io_uring_register"]])
def test_it_runs_whether_or_not_the_engine_allows_io_uring(denied: list[str], run: Run, tmp_path: Path) -> None:
    """The event loop takes a ring when it may have one, and does without when the seccomp profile denies it."""
    rules = [{"names": denied, "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EPERM}] if denied else []
    daemon, name = run(*LOOPBACK, with_=(*OURS, _seccomp(tmp_path, *rules)))
    assert answer(daemon) == LINE
    process = podman("inspect", "--format={{.State.Pid}}", name)
    rings = [path for path in Path(f"/proc/{process}/fd").iterdir() if "io_uring" in str(path.readlink())]
    assert bool(rings) == (not denied)


def test_it_runs_where_ipv6_is_switched_off(run: Run) -> None:
    """With IPv6 off in the container's network, its own check still finds it well on IPv4."""
    _, name = run(with_=("--network=none", "--sysctl=net.ipv6.conf.all.disable_ipv6=1"))
    podman("healthcheck", "run", name)


def test_it_runs_where_the_kernel_has_no_ipv6(run: Run, tmp_path: Path) -> None:
    """Where there are no sockets of IPv6, all addresses are those of IPv4."""
    no_ipv6 = {"index": 0, "value": socket.AF_INET6, "op": "SCMP_CMP_EQ"}
    denied = {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EAFNOSUPPORT, "args": [no_ipv6]}
    daemon, name = run(with_=("--network=none", _seccomp(tmp_path, denied)))
    assert daemon.addresses() == [("0.0.0.0", 2525)]  # noqa: S104
    podman("healthcheck", "run", name)


def _seccomp(directory: Path, *denied: dict[str, Any]) -> str:
    """Return the option for a profile that allows all but what is given."""
    profile = directory / "seccomp.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": denied}))
    return f"--security-opt=seccomp={profile}"


def test_without_a_network_it_answers_on_a_socket_that_it_was_given(run: Run) -> None:
    """A service manager's socket goes through podman into a container that has no network but that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        daemon, name = run(with_=("--network=none", "--no-healthcheck"), passed=(listener,))
        assert answer(daemon) == LINE
        interfaces = podman("exec", name, "/usr/bin/python3", "-c", "import socket; print(socket.if_nameindex())")
        assert interfaces == "[(1, 'lo')]"
        assert daemon.stop() == 0


def test_names_are_looked_up_and_encoded_in_it(image: str) -> None:
    """What Python loads only when it is needed is there: codecs of names, and the C library's own lookup."""
    code = "import encodings.idna, socket; print(socket.getaddrinfo('localhost', 25)[0][4], 'bücher'.encode('idna'))"
    done = run_once(image, "-c", code, with_=("--network=none", "--entrypoint=/usr/bin/python3"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in (f"{('127.0.0.1', 25)} b'xn--bcher-kva'\n", f"{('::1', 25, 0, 0)} b'xn--bcher-kva'\n")


def test_python_m_is_the_same_command(image: str) -> None:
    """The module runs as the command does."""
    done = run_once(image, "-m", "nullsmtpd", "--version", with_=("--entrypoint=/usr/bin/python3",))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nullsmtpd {nullsmtpd.__version__}\n", "")


# Every option.


class Trial(NamedTuple):
    """How an option is tried: its value, what to see then, and what that takes. No ``value``: a switch."""

    value: str
    is_seen: Callable[[Daemon, str], object]
    beside: tuple[str, ...] = LOOPBACK
    with_: tuple[str, ...] = OURS
    extras: bool = False


#: root at the start, with no more than it takes to become someone else.
AS_ROOT = (*OURS, "--user=0:0", "--cap-add=SETUID", "--cap-add=SETGID")


def _second_is_turned_away(daemon: Daemon, _name: str) -> bool:
    with connect(daemon.address) as first, first.makefile("rb") as lines:
        return lines.readline() == LINE and answer(daemon) == LINE


def _nobody_lingers(daemon: Daemon, _name: str) -> bool:
    with connect(daemon.address) as client:
        return read_all(client) == LINE and daemon.stats()["lingering"] == "0"


def _backlog(daemon: Daemon) -> str:
    shown = subprocess.run(
        ["ss", "-Hltn", f"sport = :{daemon.address[1]}"], capture_output=True, text=True, check=True
    ).stdout
    return shown.split()[2]


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
    "linger": Trial("0", _nobody_lingers),
    "max-lingering": Trial(
        "100",
        lambda daemon, _: "wanted=100 " in daemon.lines("max-lingering-lowered")[0],
        with_=(*OURS, "--ulimit=nofile=64:64", "--ulimit=nproc=1024:1024"),
    ),
    "max-sessions": Trial("1", _second_is_turned_away, beside=(*LOOPBACK, "--mode", "session")),
    "timeout": Trial("1", lambda daemon, _: answer(daemon).startswith(LINE), beside=(*LOOPBACK, "--mode", "session")),
    "backlog": Trial("17", lambda daemon, _: _backlog(daemon) == "17"),
    "workers": Trial("2", lambda _, name: len(podman("top", name, "pid").split("\n")) == 1 + 3),
    "user": Trial("nobody", lambda _, name: _identity(name, "user") == {"nobody"}, with_=AS_ROOT),
    "group": Trial("nogroup", lambda _, name: _identity(name, "group") == {"nogroup"}, with_=AS_ROOT),
    "access-log": Trial("", _access_lines),
    "metrics": Trial("127.0.0.1:0", _scrape, extras=True),
}


def test_no_option_is_left_out() -> None:
    """Every option in the tables of the commands has a trial."""
    assert TRIALS.keys() == options._TABLE.keys()
    assert CHECKS.keys() == check_options.options().keys()
    assert {flag.removeprefix("--") for flag in RELAY[::2]} | {"resolver"} == relay_options._TABLE.keys()


@pytest.mark.parametrize("name", TRIALS)
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_every_option_works_in_the_image(by: str, name: str, run: Run, request: pytest.FixtureRequest) -> None:
    """Given as an argument or in the environment, an option does in the image what it does elsewhere."""
    trial = TRIALS[name]
    image = request.getfixturevalue("image_with_extras" if trial.extras else "image")
    flag = (f"--{name}", trial.value) if trial.value else (f"--{name}",)
    variable = f"--env=NULLSMTPD_{name.upper().replace('-', '_')}={trial.value or 'yes'}"
    if by == "flag":
        daemon, container = run(*trial.beside, *flag, of=image, with_=trial.with_)
    else:
        daemon, container = run(*trial.beside, of=image, with_=(*trial.with_, variable))
    assert trial.is_seen(daemon, container)
    assert daemon.stop() == 0


@pytest.mark.parametrize("arguments", [(), ("check",), ("relay",)], ids=["responder", "check", "relay"])
def test_help_and_version_work_in_the_image(arguments: tuple[str, ...], image: str) -> None:
    """Each command explains itself, and tells its version."""
    shown = run_once(image, *arguments, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: nullsmtpd")
    shown = run_once(image, *arguments, "--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"nullsmtpd {nullsmtpd.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [("--metrics", "127.0.0.1:0", *LOOPBACK), ("relay",), ("check", "--domain", "example.org"), ("--linger", "long")],
)
def test_what_is_missing_or_wrong_is_said_in_one_line(arguments: tuple[str, ...], image: str) -> None:
    """Without its extra an option is a mistake in the usage, as a wrong value is; there is no traceback."""
    done = run_once(image, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"nullsmtpd[^\n]*: [^\n]+\n", done.stderr)


#: Options of check, and what is in the report only because of each. ``port`` is that of a responder in mode mail.
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
    """A host that refuses mail is found to do so, and so is a domain with a null MX."""
    image = request.getfixturevalue("image_with_extras" if "--domain" in CHECKS[name][0] else "image")
    _, port = start("--mode", "mail", "--hostname", "host.example").address
    arguments, shown = CHECKS[name]
    with name_server() as server:
        server.addresses["host.example"], server.texts["host.example"] = ["127.0.0.1"], ['"v=spf1 a -all"']
        done = run_once(image, "check", *(one.format(port=port, resolver=server.flag) for one in arguments))
    assert (done.returncode, done.stderr) == (0, "")
    assert shown.replace("{port}", str(port)) in done.stdout


def test_check_of_a_name_with_two_addresses_works_in_the_image(image: str, start: Start) -> None:
    """Several are asked at the same time, for which more of the library is needed."""
    _, port = start(listen=":0", count=2).address
    done = run_once(image, "check", f"127.0.0.1:{port}", f"[::1]:{port}")
    assert (done.returncode, done.stderr, done.stdout.count(" good: ")) == (0, "", 2)


RELAY = (
    *("--listen", "127.0.0.1:0", "--timeout", "3", "--cache", "10", "--max-sessions", "10"),
    *("--user", "nobody", "--group", "nogroup"),
)


def test_every_option_of_relay_works_in_the_image(run: Run, image_with_extras: str) -> None:
    """With all of its options given, the relay's server tells a null MX from another."""
    with name_server() as server:
        daemon, name = run("relay", *RELAY, "--resolver", server.flag, of=image_with_extras, with_=AS_ROOT)
        with connect(daemon.address) as client, client.makefile("rb") as answers:
            client.sendall(netstring(b"nullmx null.example") + netstring(b"nullmx plain.example"))
            expected = netstring(b"OK 556 5.1.10 Domain does not accept mail") + netstring(b"NOTFOUND ")
            assert answers.read(len(expected)) == expected
        assert _identity(name, "user") == {"nobody"}
        assert daemon.stop() == 0


PINNED = r"^([\w-]+)==\S+((?: \\\n +--hash=sha256:[0-9a-f]{64})*)$"


def test_the_pinned_version_of_a_dependency_has_a_wheel_for_each_architecture() -> None:
    """What is compiled has the hashes of wheels for amd64 and arm64; nothing is pinned without a hash."""
    for requirements in (ROOT / "deploy/image").glob("requirements*.txt"):
        for name, hashes in re.findall(PINNED, requirements.read_text(), re.MULTILINE):
            assert hashes.count("sha256") >= (4 if name == "uvloop" else 1), name
