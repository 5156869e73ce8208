"""The command from outside: what it prints, and its exit status."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import LINE, PATIENCE, Start, connect, read_all, require, require_tools, run_cli

from nullsmtpd import __version__

PACKAGE = Path(__file__).parents[2] / "nullsmtpd"


def test_version_and_help_answer_on_stdout_with_status_0() -> None:
    """Both need no configuration, and print nothing else."""
    version = run_cli("--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, f"nullsmtpd {__version__}\n", "")
    for flag in ("--help", "-h"):
        usage = run_cli(flag, env={"NULLSMTPD_LINGER": "invalid"})
        assert usage.returncode == 0
        assert usage.stdout.startswith("usage: nullsmtpd ")
        assert usage.stderr == ""


def test_the_installed_command_is_the_same_as_the_module() -> None:
    """`nullsmtpd` and `python -m nullsmtpd` are one command."""
    command = Path(sys.executable).with_name("nullsmtpd")
    require(command.exists(), "the command nullsmtpd beside the interpreter")
    installed = subprocess.run([command, "--help"], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert installed.stdout == run_cli("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "env", "named"),
    [
        (["--listen", "127.0.0.1:99999"], {}, "'127.0.0.1:99999' is not an address"),
        ([], {"NULLSMTPD_LISTEN": "127.0.0.1:1,"}, "NULLSMTPD_LISTEN: ''"),
        ([], {"NULLSMTPD_TEXT": "naïve"}, "NULLSMTPD_TEXT: "),
        (["serve"], {}, "'serve'"),
        ([], {"NULLSMTPD_LINGR": "1"}, "'NULLSMTPD_LINGR'"),
    ],
)
def test_an_invalid_option_is_one_line_that_names_it_and_status_2(
    arguments: list[str], env: dict[str, str], named: str
) -> None:
    """Nothing starts, nothing is printed on stdout, and there is no traceback."""
    result = run_cli(*arguments, env=env)
    assert result.returncode == 2
    assert result.stdout == ""
    assert re.fullmatch(r"nullsmtpd: [^\n]+\n", result.stderr)
    assert named in result.stderr


def test_an_argument_that_is_not_utf_8_is_refused_in_one_line() -> None:
    """Its octets are escaped in the message."""
    result = subprocess.run(
        [sys.executable, "-m", "nullsmtpd", b"--text=\xff"], capture_output=True, check=False, timeout=PATIENCE
    )
    assert result.returncode == 2
    assert result.stderr.isascii()
    assert result.stderr.count(b"\n") == 1


def test_a_taken_port_is_one_line_and_status_1() -> None:
    """The message names the address and the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run_cli("--listen", f"127.0.0.1:{port}")
    assert result.returncode == 1
    assert re.fullmatch(rf"nullsmtpd: --listen 127\.0\.0\.1:{port}: Address already in use; .*\n", result.stderr)


def test_an_address_that_the_host_does_not_have_is_one_line_and_status_1() -> None:
    """The second address is at fault, so the first must not stay bound."""
    result = run_cli("--listen", "127.0.0.1:0", "--listen", "192.0.2.1:0")
    assert result.returncode == 1
    assert re.fullmatch(r"nullsmtpd: --listen 192\.0\.2\.1:0: .*does not have that address.*\n", result.stderr)


@pytest.mark.parametrize(
    ("host", "remedy"),
    [
        ("[fe80::1]", "link-local address with its interface"),
        ("[::ffff:127.0.0.1]", "IPv4 address as HOST:PORT"),
        ("[fe80::1%nowhere]", "an interface of this host"),
        ("nowhere.invalid", "a name that resolves"),
    ],
)
@pytest.mark.parametrize("flag", ["--listen", "--metrics"])
def test_an_address_that_cannot_be_bound_names_the_remedy(flag: str, host: str, remedy: str) -> None:
    """What bind(2) calls an invalid argument, and what does not resolve: one line, and status 1."""
    result = run_cli("--listen", "127.0.0.1:0", f"{flag}={host}:0")
    assert result.returncode == 1
    assert re.fullmatch(rf"nullsmtpd: {flag} {re.escape(host)}:0: [^\n;]+; give .*{remedy}.*\n", result.stderr)


@pytest.mark.parametrize("module", ["None", "type(sys)('uvloop')"])
def test_a_uvloop_that_is_missing_or_unreadable_is_one_line_and_status_1(module: str) -> None:
    """Python takes a package that it may not read for one without any names."""
    program = f"import sys; sys.modules['uvloop'] = {module}; from nullsmtpd.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--listen", "127.0.0.1:0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert result.returncode == 1
    assert re.fullmatch(r"nullsmtpd: cannot run: .*uvloop.*; reinstall .*\n", result.stderr)


@pytest.mark.parametrize("name", ["cli/arguments.py", "responder/dialogues.py", "responder/server.py"])
def test_a_module_that_may_not_be_read_is_one_line_and_status_1(tmp_path: Path, name: str) -> None:
    """It is named, whether the command, its options or the server need it."""
    require(os.geteuid() == 0, "root, to drop capabilities")
    require_tools("setpriv")
    copy = shutil.copytree(PACKAGE, tmp_path / "nullsmtpd", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / name).chmod(0)
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-m", "nullsmtpd"]
    arguments = ["--listen", "127.0.0.1:0", "--mode", "mail"]
    result = subprocess.run(
        [*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert result.returncode == 1
    assert re.fullmatch(r"nullsmtpd: cannot run: [^\n]*Permission denied[^\n]*\n", result.stderr)
    assert str(copy / name) in result.stderr


def test_port_25_without_the_permission_names_the_remedies() -> None:
    """Another port, the capability, or socket activation."""
    require(os.geteuid() == 0 and sys.platform == "linux", "root, to drop a capability")
    require(int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) > 25, "a privileged port 25")
    result = subprocess.run(
        [sys.executable, "-m", "nullsmtpd", "--listen", "127.0.0.1:25"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        preexec_fn=drop_bind_capability,
    )
    assert result.returncode == 1
    assert re.fullmatch(r"nullsmtpd: --listen 127\.0\.0\.1:25: Permission denied; .*\n", result.stderr)
    for remedy in ("port above 1023", "CAP_NET_BIND_SERVICE", "socket activation"):
        assert remedy in result.stderr


def drop_bind_capability() -> None:
    """Take CAP_NET_BIND_SERVICE (10) out of the bounding set: root, and still not allowed; prctl(2)."""
    import ctypes

    pr_capbset_drop, cap_net_bind_service = 24, 10
    if ctypes.CDLL(None, use_errno=True).prctl(pr_capbset_drop, cap_net_bind_service, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def test_each_address_has_its_start_line_after_which_it_answers(start: Start) -> None:
    """Both families, more than one address, real ports instead of 0, from the environment."""
    daemon = start(env={"NULLSMTPD_LISTEN": "127.0.0.1:0,[::1]:0,:0"}, listen=None, count=4)
    addresses = daemon.addresses()
    assert [host for host, _ in addresses] == ["127.0.0.1", "::1", "0.0.0.0", "::"]  # noqa: S104
    assert all(port for _, port in addresses)
    for host, port in addresses:
        with connect(({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)) as connection:  # noqa: S104
            assert read_all(connection) == LINE
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert all(re.match(rf"{time} [a-z-]+( [a-z_]+=\S+)*$", line) for line in daemon.log.splitlines())


def test_the_text_is_the_operators(start: Start) -> None:
    """--text replaces what follows the code; % and backslash are plain characters."""
    daemon = start("--text", r"No mail here, see https://www.example.org/%20\n")
    with connect(daemon.address) as connection:
        assert read_all(connection) == rb"521 No mail here, see https://www.example.org/%20\n" + b"\r\n"


def test_a_line_of_512_octets_arrives_whole(start: Start) -> None:
    """The longest reply that RFC 5321 allows."""
    daemon = start("--text", "x" * 506)
    with connect(daemon.address) as connection:
        assert read_all(connection) == b"521 " + b"x" * 506 + b"\r\n"


def test_sigusr1_logs_the_counters(start: Start) -> None:
    """One stats line for each signal, and one at exit."""
    daemon = start()
    for _ in range(3):
        with connect(daemon.address) as connection:
            read_all(connection)
    with connect(daemon.address):
        daemon.wait_for(lambda: daemon.stats()["connections"] == "4", "four connections")
        assert daemon.stats()["lingering"] != "0"
    daemon.wait_for(lambda: daemon.stats()["lingering"] == "0", "no one lingering")
    before = len(daemon.lines("stats"))
    assert daemon.stop() == 0
    assert len(daemon.lines("stats")) == before + 1
    last = dict(field.split("=") for field in daemon.lines("stats")[-1].split()[2:])
    assert last["connections"] == "4"
    assert last["send_errors"] == last["accept_errors"] == last["cut_short"] == last["drained"] == "0"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_sigint_shut_it_down_with_status_0(start: Start, number: signal.Signals) -> None:
    """Idle, it has nothing to wait for; the port is free again."""
    daemon = start()
    address = daemon.address
    assert daemon.stop(number) == 0
    with pytest.raises(ConnectionRefusedError):
        connect(address)


@pytest.mark.parametrize(("arguments", "status"), [("--help", 0), ("--version", 0), ("--wrong", 2)])
def test_closed_outputs_change_no_exit_status(arguments: str, status: int) -> None:
    """Output is lost, and nothing else."""
    command = ["/bin/sh", "-c", f'exec "$0" -m nullsmtpd {arguments} >&- 2>&-', sys.executable]
    assert subprocess.run(command, check=False, timeout=PATIENCE).returncode == status


def test_stderr_may_be_closed_from_the_start() -> None:
    """A daemon without a log answers, and shuts down gracefully."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$0" -m nullsmtpd --listen 127.0.0.1:{port} <&- >&- 2>&-', sys.executable]
    )
    try:
        for _ in range(1000):
            try:
                with connect(("127.0.0.1", port)) as connection:
                    assert read_all(connection) == LINE
                break
            except ConnectionRefusedError:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.01)
        else:
            pytest.fail("never answered")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
