"""The units in deploy/relay/: what systemd-analyze says of them, and what they do under a systemd of the test's own."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PATIENCE, require_tools
from systemd_machine import PIP_PATIENCE, ROOT, Machine, complaints, exposure

DEPLOY = ROOT / "deploy" / "relay"
SOCKET = DEPLOY / "nullsmtpd-relay.socket"
SERVICE = DEPLOY / "nullsmtpd-relay.service"
DROP_IN = DEPLOY / "postfix" / "socket.conf"
NAME = SERVICE.name

NULL_MX = "null.example"
DNS = ("dnsmasq", "--conf-file=/dev/null", "--user=root", "--no-resolv", "--no-hosts", f"--dns-rr={NULL_MX},15,000000")

# Arguments: the path of a Unix socket, a key, and how often to ask for it, each time over another connection. One that
# the service closes before the question has come is no answer: it is asked again, as by Postfix (dict_sockmap.c).
ASK = """
import collections, json, socket, sys
path, key, times = sys.argv[1:]
request = f"nullmx {key}".encode()
replies = collections.Counter()
while replies.total() < int(times):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        try:
            client.sendall(b"%d:%s," % (len(request), request))
            client.shutdown(socket.SHUT_WR)
            reply = client.makefile("rb").read().decode()
        except (BrokenPipeError, ConnectionResetError):
            continue
    if reply:
        replies[reply] += 1
print(json.dumps(replies))
"""
REFUSAL = "41:OK 556 5.1.10 Domain does not accept mail,"


def copies(directory: Path) -> list[Path]:
    """Copy the units with a command that this machine has: `verify` looks for it."""
    for unit in (SOCKET, SERVICE):
        text = unit.read_text().replace("/opt/nullsmtpd/bin/nullsmtpd", sys.executable)
        (directory / unit.name).write_text(text)
    return [directory / unit.name for unit in (SOCKET, SERVICE)]


@pytest.mark.parametrize("with_postfix", [False, True])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, *, with_postfix: bool) -> None:
    """Not one warning; with the drop-in for Postfix neither."""
    units = copies(tmp_path)
    if with_postfix:
        drop_ins = tmp_path / f"{SOCKET.name}.d"
        drop_ins.mkdir()
        shutil.copy(DROP_IN, drop_ins)
    assert not complaints(units)


@pytest.mark.parametrize("unit", [SOCKET, SERVICE])
def test_systemctl_help_shows_the_manual_page_of_the_command(unit: Path) -> None:
    """The one that is beside the units, not the responder's."""
    page = re.search(r"^Documentation=man:(.+)\((\d)\)$", unit.read_text(), re.MULTILINE)
    assert page
    text = (ROOT / "deploy" / "man" / f"{page[1]}.{page[2]}").read_text()
    assert "\n.Nm nullsmtpd-relay\n" in text


def test_the_service_is_exposed_to_little_but_dns() -> None:
    """1.3 at most of 10; what it has more than the responder is the network."""
    assert exposure(SERVICE) <= 1.3


def install_extra(machine: Machine, directory: Path) -> None:
    """Do ``pip install 'nullsmtpd-521[relay]'`` in a machine that has no way out: what is missing is handed in."""
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(directory), f"{ROOT}[relay]")
    subprocess.run(pip, check=True, timeout=PIP_PATIENCE)
    machine.run("mkdir", "/opt/relay-wheels")
    archive = subprocess.run(("tar", "--create", f"--directory={directory}", "."), check=True, stdout=subprocess.PIPE)
    unpack = machine.command("tar", "--extract", "--directory=/opt/relay-wheels")
    subprocess.run(unpack, input=archive.stdout, check=True, timeout=PATIENCE)
    install = ("/opt/nullsmtpd/bin/pip", "install", "--quiet", "--no-index", "--find-links=/opt/relay-wheels")
    machine.run(*install, "nullsmtpd-521[relay]")


@pytest.fixture(scope="module")
def relay(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Install the units as the README says, with a name server beside them; the socket alone is started."""
    require_tools("dnsmasq")
    install_extra(machine, tmp_path_factory.mktemp("wheels"))
    for path, text in (
        (f"/run/units/{SOCKET.name}", SOCKET.read_text()),
        (f"/run/units/{SOCKET.name}.d/postfix.conf", DROP_IN.read_text()),
        (f"/run/units/{NAME}", SERVICE.read_text()),
        ("/etc/default/nullsmtpd-relay", "LD_LIBRARY_PATH=/opt/python/lib\nNULLSMTPD_RESOLVER=127.0.0.1\n"),
    ):
        machine.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && printf %s "$1" > "$0"', path, text)
    machine.run(*DNS)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", SOCKET.name)
    yield machine
    machine.run("systemctl", "stop", SOCKET.name, NAME)


def ask(relay: Machine, key: str, path: str = "/run/nullsmtpd/relay") -> str:
    """Ask once, as an unprivileged user."""
    nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
    (reply,) = json.loads(relay.run(*nobody, "/usr/bin/python3", "-c", ASK, path, key, "1"))
    assert isinstance(reply, str)
    return reply


@pytest.mark.parametrize("path", ["/run/nullsmtpd/relay", "/var/spool/postfix/nullsmtpd/relay"])
def test_a_question_starts_the_service_and_gets_its_answer(relay: Machine, path: str) -> None:
    """Anyone may ask, at the socket of the unit and at the one in Postfix's chroot."""
    relay.run("systemctl", "stop", NAME)
    assert ask(relay, f"bob@{NULL_MX}", path) == REFUSAL
    assert ask(relay, "bob@other.example", path) == "9:NOTFOUND ,"


def test_the_directory_of_the_socket_is_safe_for_sendmail(relay: Machine) -> None:
    """The socket is everybody's, its directory is root's alone."""
    modes = relay.run("stat", "--format=%a %U", "/run/nullsmtpd/relay", "/run/nullsmtpd").split("\n")
    assert modes[:2] == ["666 root", "755 root"]


def test_the_service_is_nobody(relay: Machine) -> None:
    """A user that exists while it runs, no capability, no new privileges, a seccomp filter."""
    ask(relay, NULL_MX)
    pid = relay.run("systemctl", "show", "--value", "--property=MainPID", NAME).strip()
    status = dict(re.findall(r"^(\w+):\t(\S*)", relay.run("cat", f"/proc/{pid}/status"), re.MULTILINE))
    assert 61184 <= int(status["Uid"]) <= 65519  # systemd.exec(5): the range that DynamicUser= takes from
    assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_questions_wait_while_the_service_is_restarted(relay: Machine) -> None:
    """During restarts every connection succeeds and every question is answered."""
    command = relay.command("/usr/bin/python3", "-c", ASK, "/run/nullsmtpd/relay", NULL_MX, "1000")
    restarts = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        while client.poll() is None:
            relay.run("systemctl", "restart", NAME)
            restarts += 1
        said, _ = client.communicate(timeout=PATIENCE)
    assert client.returncode == 0
    assert json.loads(said) == {REFUSAL: 1000}
    assert restarts
