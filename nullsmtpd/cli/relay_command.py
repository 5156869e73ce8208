"""The command ``nullsmtpd relay``: from its arguments to the server and back to an exit status."""

from collections.abc import MutableMapping, Sequence

from nullsmtpd.cli.command import run_server

__all__ = ["run"]


def run(arguments: Sequence[str], environment: MutableMapping[str, str]) -> int:
    """Run the command with the arguments after ``relay``; return its exit status, see --help."""
    from nullsmtpd.cli.relay import Options, UsageError, help_text, parse_options

    def serve(options: Options) -> None:
        from nullsmtpd.nullmx import MissingExtraError, load_extra

        try:
            load_extra()
        except MissingExtraError as error:
            raise UsageError(str(error)) from None
        from nullsmtpd.relay.server import serve as serve_relays

        serve_relays(options, environment)

    return run_server("nullsmtpd relay", arguments, help_text, lambda: parse_options(arguments, environment), serve)
