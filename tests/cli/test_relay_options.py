"""The options of ``nullsmtpd relay``, and the one line that an invalid one gets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import PATIENCE, run_cli

from nullsmtpd.cli.arguments import UsageError
from nullsmtpd.cli.relay import help_text, parse_options
from nullsmtpd.relay.options import Options
from nullsmtpd.runtime.sockets import Address

ROOT = Path(__file__).parents[2]


def test_the_defaults_are_loopback_and_the_hosts_own_resolver() -> None:
    """Other hosts cannot ask, and DNS gets less time than any mail server gives a lookup."""
    assert parse_options([], {}) == Options(
        listen=(Address("127.0.0.1", 5560),),
        exceptions=frozenset(),
        resolver=None,
        timeout=5.0,
        cache=10000,
        max_sessions=1000,
        user=None,
        group=None,
        metrics=None,
    )


def test_flags_override_variables_and_some_may_be_repeated() -> None:
    """Unix sockets and addresses in one list, each once; exceptions as A-labels in lower case."""
    options = parse_options(
        ["--listen", "unix:/run/a", "--listen", "[::1]:1", "--listen=unix:/run/a", "--cache", "7"],
        {"NULLSMTPD_LISTEN": "unix:/run/b", "NULLSMTPD_CACHE": "8", "NULLSMTPD_RESOLVER": "::1"},
    )
    assert options.listen == ("/run/a", Address("::1", 1))
    assert (options.cache, options.resolver) == (7, ("::1", 53))
    assert parse_options([], {"NULLSMTPD_LISTEN": "unix:/run/b,:7"}).listen == ("/run/b", Address(None, 7))
    exceptions = ["--except", "Own.Example.", "--except=.below.example", "--except", "bücher.example"]
    wanted = {"own.example", ".below.example", "xn--bcher-kva.example"}
    assert parse_options(exceptions, {"NULLSMTPD_EXCEPT": "other.example"}).exceptions == wanted
    assert parse_options([], {"NULLSMTPD_EXCEPT": ".example,own.test"}).exceptions == {".example", "own.test"}
    assert parse_options(["--metrics", "[::1]:9521"], {}).metrics == Address("::1", 9521)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "unix:"], "--listen: 'unix:' has no plain absolute path of at most 103 octets"),
        (["--listen", "unix:run/a"], "--listen: 'unix:run/a' has no plain absolute path"),
        (["--listen", "unix:/" + "a" * 103], "has no plain absolute path of at most 103 octets"),
        (["--listen", "unix:/" + "é" * 60], "has no plain absolute path of at most 103 octets"),
        (["--listen", "unix:/a\nb"], "has no plain absolute path"),
        (["--listen", "unix:/a\0b"], "has no plain absolute path"),
        (["--listen", "localhost"], "--listen: 'localhost' is not an address; give HOST:PORT"),
        (["--resolver", "ns.example"], "--resolver: 'ns.example' is not the address of a name server"),
        (["--except", "bob@own.example"], "--except: 'bob@own.example' is an address; give its domain"),
        (["--except", "a..b"], "--except: 'a..b' is not a domain name; give labels"),
        (["--except", ""], "--except: '' has no domain"),
        (["--except", "192.0.2.1"], "--except: '192.0.2.1' is an IP address"),
        (["--metrics", ":9521"], "--metrics: ':9521' has no host; give HOST:PORT"),
        (["--timeout", "0"], "--timeout: '0' is not a number of seconds above 0"),
        (["--timeout", "61"], "--timeout: '61' is not a number of seconds above 0 and up to 60"),
        (["--cache", "0"], "--cache: '0' is not a whole number from 1"),
        (["--max-sessions", "many"], "--max-sessions: 'many' is not a whole number"),
        (["--user", "no such user"], "--user: 'no such user' is neither a name nor a number"),
        (["--mode", "close"], "unknown argument '--mode'; --help lists the options"),
        (["--cache"], "--cache needs a value: --cache N"),
    ],
)
def test_an_invalid_value_is_one_line_with_the_option_and_what_would_be_valid(arguments: list[str], says: str) -> None:
    """One line, and exit status 2 in the real command."""
    with pytest.raises(UsageError) as caught:
        parse_options(arguments, {})
    assert says in str(caught.value)
    if "\0" in "".join(arguments):
        return
    result = run_cli("relay", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("nullsmtpd relay: ")
    assert result.stderr.count("\n") == 1
    assert says in result.stderr


@given(
    st.dictionaries(
        st.sampled_from(["listen", "except", "resolver", "timeout", "cache", "max-sessions", "user", "metrics"]),
        st.text(),
    )
)
def test_any_values_are_options_or_one_line(values: dict[str, str]) -> None:
    """Invariant: nothing but a usage error comes of any text, and it is one line of printable characters."""
    try:
        parse_options([f"--{name}={value}" for name, value in values.items()], {})
    except UsageError as error:
        assert str(error).isprintable()


def test_the_help_for_the_timeout_tells_how_long_the_recipes_wait() -> None:
    """More than 10 seconds are in vain for most of them, and their own timeouts are those."""
    for recipe, text in (
        ("exim/nullmx.acl", "{10s}"),
        ("opensmtpd/nullmx_filter.py", "TIMEOUT = 10.0"),
        ("postfix-policy/main.cf", "timeout=10s"),
    ):
        assert text in (ROOT / "deploy/relay" / recipe).read_text(), recipe
    for said in (help_text(), (ROOT / "deploy/man/nullsmtpd-relay.8").read_text()):
        assert "wait for more than 10" in " ".join(said.split())


def test_help_and_version_need_no_extra(tmp_path: Path) -> None:
    """They are printed on stdout, with status 0, also where dnspython is missing."""
    environment = without_modules(tmp_path, "dns", "idna")
    assert "--resolver ADDR[:PORT]" in run_cli("relay", "--help", env=environment).stdout
    assert run_cli("relay", "--version", env=environment).stdout.startswith("nullsmtpd ")


@pytest.mark.parametrize("missing", ["dns", "idna"])
def test_without_the_extra_one_line_says_what_to_install(tmp_path: Path, missing: str) -> None:
    """Exit status 2, and the command to type."""
    result = run_cli("relay", "--listen", "127.0.0.1:0", env=without_modules(tmp_path, missing))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("nullsmtpd relay: ")
    assert "pip install 'nullsmtpd-521[relay]'" in result.stderr


def without_modules(tmp_path: Path, *names: str) -> dict[str, str]:
    """Return an environment in which these modules cannot be imported."""
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name={name!r})\n")
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def test_the_responder_imports_nothing_of_this() -> None:
    """A host that only answers port 25 has no use for it in its memory."""
    code = (
        "import sys, nullsmtpd.responder.server\n"
        "print([name for name in sys.modules if name.startswith(('dns', 'idna')) or 'relay' in name])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert result.stdout == "[]\n"
