import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.cli.arguments import Option, UsageError, read_options
from nullsmtpd.cli.responder import help_text, parse_options
from nullsmtpd.cli.values import boolean
from nullsmtpd.responder.options import Options
from nullsmtpd.runtime.sockets import Address

DEFAULTS = Options(
    listen=(Address(None, 25),),
    mode="close",
    reply=b"521 Host does not accept mail\r\n",
    dialogue=None,
    linger=2.0,
    max_lingering=4096,
    max_sessions=1000,
    timeout=300.0,
    backlog=4096,
    reuse_port=False,
    user=None,
    group=None,
    access_log=False,
    metrics=None,
)
FLAGS = [
    *("listen", "mode", "text", "hostname", "linger", "max-lingering", "max-sessions", "timeout", "backlog"),
    *("user", "group", "metrics"),
]
SWITCHES = ["reuse-port", "access-log"]


def variable(name: str) -> str:
    return "NULLSMTPD_" + name.upper().replace("-", "_")


def test_without_arguments_the_defaults_hold() -> None:
    """The defaults are those of the documentation."""
    assert parse_options([], {"PATH": "/bin", "LANG": "C"}) == DEFAULTS


def test_a_flag_wins_over_its_variable_and_that_over_the_default() -> None:
    """Flag, then environment, then default."""
    assert parse_options([], {"NULLSMTPD_LINGER": "3"}).linger == 3
    assert parse_options(["--linger", "4"], {"NULLSMTPD_LINGER": "3"}).linger == 4
    assert parse_options(["--linger", "4", "--linger=5"], {}).linger == 5


def test_a_flag_does_not_excuse_a_variable_that_is_wrong_by_name() -> None:
    """An unknown variable is refused whatever the flags say."""
    with pytest.raises(UsageError, match="unknown variable 'NULLSMTPD_LINGR'"):
        parse_options(["--linger", "1"], {"NULLSMTPD_LINGR": "3"})


SERVICES = ["NULLSMTPD", "NULLSMTPD_METRICS", "NULLSMTPD_2", "NULLSMTPD_SERVICE", "NULLSMTPD_PORT"]


@pytest.mark.parametrize("service", SERVICES)
def test_variables_of_a_kubernetes_service_of_our_name_are_left_alone(service: str) -> None:
    """Kubernetes puts NULLSMTPD_PORT and the like into every pod beside a Service "nullsmtpd"; alone they are none."""
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "25",
        f"{service}_SERVICE_PORT_SMTP": "25",
        f"{service}_PORT": "tcp://10.0.0.1:25",
        f"{service}_PORT_25_TCP_ADDR": "10.0.0.1",
    }
    assert parse_options([], links) == DEFAULTS
    del links[f"{service}_SERVICE_HOST"]
    with pytest.raises(UsageError, match=f"unknown variable '{service}_SERVICE_PORT'"):
        parse_options([], links)


def test_listen_may_be_repeated_and_duplicates_count_once() -> None:
    """Each --listen adds an address; in the environment they are separated by commas."""
    wanted = (Address("127.0.0.1", 1), Address("::1", 2))
    assert parse_options(["--listen", "127.0.0.1:1", "--listen=[::1]:2", "--listen=[::1]:2"], {}).listen == wanted
    assert parse_options([], {"NULLSMTPD_LISTEN": "127.0.0.1:1,[::1]:2"}).listen == wanted


@given(st.floats(0, 3600))
def test_seconds_are_read_as_written(seconds: float) -> None:
    """Invariant: a plain decimal number from 0 to 3600 is taken as it is."""
    text = f"{seconds:.6f}"
    assert math.isclose(parse_options(["--linger", text], {}).linger, float(text))


@pytest.mark.parametrize(
    "text",
    ["", "-1", "-0.5", "nan", "NaN", "inf", "-inf", "Infinity", "1e400", "3601", "1_0", " 1", "1s", "٣", "0x1", "."],
)
def test_seconds_that_are_none_are_refused(text: str) -> None:
    """Negative, infinite, not a number, too large, or merely written in a way that float() would take."""
    with pytest.raises(UsageError, match=r"^--linger: .* is not a number of seconds from 0 to 3600$"):
        parse_options(["--linger", text], {})


@given(st.integers(1, 2**31 - 1))
def test_counts_are_read_as_written(count: int) -> None:
    """Invariant: a whole number from 1 on is taken as it is, for each option that counts."""
    options = parse_options([f"--max-lingering={count}"], {"NULLSMTPD_BACKLOG": str(count)})
    assert (options.max_lingering, options.backlog) == (count, count)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "2147483648", "99999999999999999999", "nan", "1_0", "+1", "٣"])
@pytest.mark.parametrize("name", ["max-lingering", "max-sessions", "backlog"])
def test_counts_that_are_none_are_refused(name: str, text: str) -> None:
    """The message names the option and the range."""
    with pytest.raises(UsageError, match=rf"^--{name}: .* is not a whole number from 1 to 2147483647$"):
        parse_options([f"--{name}", text], {})


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "a b",
        "a_b",
        "bücher.example",
        "[127.0.0.1]",
        "a" * 64,
        "a." * 128 + "a",
    ],
)
def test_a_hostname_that_is_no_domain_name_is_refused(name: str) -> None:
    """RFC 5321 §2.3.5: labels of letters, digits and hyphens."""
    with pytest.raises(UsageError, match=r"^--hostname: .* is not a domain name"):
        parse_options(["--hostname", name], {})


def test_modes_make_their_dialogues() -> None:
    """Mode close has none; the other two answer from a table with the operator's text and name."""
    assert parse_options(["--mode", "close"], {}).dialogue is None
    options = ["--text", "No", "--hostname", "a.example"]
    mail = parse_options(["--mode", "mail", *options], {}).dialogue
    session = parse_options(["--mode=session", *options], {}).dialogue
    assert mail is not None
    assert session is not None
    assert (mail.greeting, mail.default) == (b"220 a.example ESMTP\r\n", b"521 5.3.2 No\r\n")
    assert session.greeting == session.default == b"521 No\r\n"
    with pytest.raises(UsageError, match=r"^--mode: 'smtp' is not a mode; give close, session or mail$"):
        parse_options(["--mode", "smtp"], {})


def test_in_mode_mail_the_enhanced_code_counts_too() -> None:
    """The text may be six octets shorter there."""
    assert parse_options(["--text", "x" * 506], {}).dialogue is None
    with pytest.raises(UsageError, match="at most 500 fit"):
        parse_options(["--text", "x" * 501, "--mode", "mail"], {})


@pytest.mark.parametrize("name", ["my_host", "", "x" * 300])
def test_a_host_whose_name_is_no_domain_name_calls_itself_localhost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default must not make a reply that a strict client refuses."""
    monkeypatch.setattr("socket.gethostname", lambda: name)
    dialogue = parse_options(["--mode", "mail"], {}).dialogue
    assert dialogue is not None
    assert dialogue.greeting == b"220 localhost ESMTP\r\n"


def test_a_timeout_of_nothing_is_refused() -> None:
    """A client must have some time to speak."""
    with pytest.raises(UsageError, match=r"^--timeout: '0' is not a number of seconds above 0"):
        parse_options(["--timeout", "0"], {})


@pytest.mark.parametrize("name", FLAGS)
def test_an_empty_value_is_refused_wherever_it_stands(name: str) -> None:
    """An empty value is a mistake, in a flag and in the environment: most often a variable that was never set."""
    for arguments, environment, source in (
        ([f"--{name}="], {}, f"--{name}"),
        ([], {variable(name): ""}, variable(name)),
    ):
        with pytest.raises(UsageError, match=f"^{source}: ''"):
            parse_options(arguments, environment)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_without_its_value_says_what_is_missing(name: str) -> None:
    """The message shows the flag with the value's name."""
    with pytest.raises(UsageError, match=rf"^--{name} needs a value: --{name} [A-Z:]+$"):
        parse_options([f"--{name}"], {})


@given(st.text(string.printable, min_size=1))
def test_unknown_arguments_are_refused(argument: str) -> None:
    """Invariant: nothing but the documented flags is taken, not even an abbreviation of one."""
    if argument.partition("=")[0] in {f"--{name}" for name in FLAGS + SWITCHES}:
        return
    with pytest.raises(UsageError, match="unknown argument"):
        parse_options([argument], {})


@given(st.sampled_from(FLAGS), st.text(max_size=300))
def test_any_value_is_taken_or_refused_in_one_line(name: str, value: str) -> None:
    """Invariant: whatever the value, there are options or one line of printable ASCII that names the source."""
    try:
        parse_options([f"--{name}", value], {})
    except UsageError as error:
        message = str(error)
        assert message.startswith(f"--{name}: ")
        assert "\n" not in message
        assert len(message) < 300


def test_help_names_every_option_with_its_default() -> None:
    """--help is made from the same table as the options."""
    text = help_text()
    for name in FLAGS + SWITCHES:
        assert f"  --{name} " in text
    for default in (":25", "Host does not accept mail", "2", "4096"):
        assert f"(default: {default})" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", ["user", "group"])
@pytest.mark.parametrize("text", ["", "a b", "-1", "a:b", "ü", "x" * 33])
def test_what_cannot_be_an_account_is_refused(name: str, text: str) -> None:
    """A user or a group is a name or a number."""
    with pytest.raises(UsageError, match=rf"^--{name}: .* is neither a name nor a number"):
        parse_options([f"--{name}={text}"], {})


def test_metrics_want_a_host() -> None:
    """An address for all interfaces has to be asked for: numbers are not for everyone."""
    assert parse_options(["--metrics", "[::1]:9521"], {}).metrics == Address("::1", 9521)
    with pytest.raises(UsageError, match=r"^--metrics: ':9521' has no host; give HOST:PORT"):
        parse_options(["--metrics", ":9521"], {})


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_takes_no_value_as_a_flag_and_yes_or_no_as_a_variable(name: str) -> None:
    """--access-log stands alone; NULLSMTPD_ACCESS_LOG may also be no."""

    def value(*arguments: str, **environment: str) -> object:
        return getattr(parse_options(arguments, environment), name.replace("-", "_"))

    assert value(f"--{name}", **{variable(name): "0"}) is True
    assert value() is False
    for text in ("1", "yes", "TRUE", "on"):
        assert value(**{variable(name): text}) is True
    for text in ("0", "No", "false", "off"):
        assert value(**{variable(name): text}) is False
    with pytest.raises(UsageError, match=rf"^--{name} takes no value; leave out 'no'$"):
        value(f"--{name}=no")
    with pytest.raises(UsageError, match=rf"^{variable(name)}: 'maybe' is neither yes nor no; give 1 or 0$"):
        value(**{variable(name): "maybe"})


def test_a_long_wrong_value_is_shortened_in_its_message() -> None:
    """A whole file given by mistake does not fill the terminal, or the journal."""
    with pytest.raises(UsageError) as raised:
        parse_options(["--text", "x" * 5000], {})
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("arguments", "names", "operands"),
    [
        ("x y", (), ("x", "y")),
        ("--name a b x", ("a", "b", "x"), ()),
        ("x --name a b --switch y --name=c d", ("a", "b", "c", "d"), ("x", "y")),
        ("--number 1 x --name a --number 2 y", ("a",), ("x", "y")),
    ],
)
def test_arguments_without_a_flag_follow_one_that_takes_several_or_stand_alone(
    arguments: str, names: tuple[str, ...], operands: tuple[str, ...]
) -> None:
    """Several values end at the next flag."""
    table = {
        "name": Option("NAME...", "", "", lists=True),
        "number": Option("N", "", ""),
        "switch": Option("", "no", "", boolean),
        "": Option("OPERAND", "", "", lists=True),
    }
    options = read_options(table, arguments.split(), {})
    assert (options["name"], options[""]) == (names, operands)
    with pytest.raises(UsageError, match="unknown argument 'x'"):
        read_options({"switch": table["switch"]}, ["--switch", "x"], {})
