"""The command group, and exit codes."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any

import click

from pay88_adapters import ConfigurationError, Pay88Error, __version__

SUCCESS, FAILURE, USAGE_ERROR = 0, 1, 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 and the number of the signal, as in a shell

_EXIT_CODES = """\b
Exit codes:
  0    success
  1    failure
  2    usage or configuration error, or a missing library
  130  interrupted
  141  broken pipe
"""


class MissingLibrary(click.ClickException):
    """Libraries are not installed.

    Args:
        names: Import names of the libraries.
        extra: The extra that installs them.
    """

    exit_code = USAGE_ERROR

    def __init__(self, *names: str, extra: str) -> None:
        needed = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not installed"
        super().__init__(f"{needed}: pip install 'pay88-adapters[{extra}]'")

    def show(self, file: Any = None) -> None:
        click.echo(f"pay88: {self.message}", err=True)


def require(*names: str, extra: str) -> None:
    """Check that libraries are installed.

    Raises:
        MissingLibrary: A library is not installed.
    """
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise MissingLibrary(*missing, extra=extra)


class Command(click.Command):
    """A command whose function returns its exit code (``None`` for 0) and may raise a :class:`Pay88Error`."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Pay88Error as error:
            if ctx.params.get("as_json"):
                click.echo(json.dumps({"error": described(error)}))
            click.echo(f"pay88: {error}", err=True)
            return USAGE_ERROR if isinstance(error, ConfigurationError) else FAILURE


class Commands(click.Group):
    """A group that imports a command when it is used."""

    names = ("budget", "check", "demo", "emulator", "request", "token")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.names:
            return None
        command: click.Command = import_module(f".commands.{cmd_name}", __package__).command
        return command

    def invoke(self, ctx: click.Context) -> None:
        """Run a command and exit with its exit code."""
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            click.echo("pay88: interrupted", err=True)
            code = INTERRUPTED
        except BrokenPipeError:  # the reader of the output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
            code = BROKEN_PIPE
        ctx.exit(code or SUCCESS)


def described(error: Pay88Error) -> dict[str, object]:
    """Return *error* as a JSON object."""
    return {
        "kind": next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == Pay88Error.__module__),
        "message": str(error),
        "status": error.status,
        "retry_after": error.retry_after,
        "retryable": error.retryable,
    }


def _is_installed(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


@click.group(
    cls=Commands,
    epilog=_EXIT_CODES,
    no_args_is_help=False,  # its exit code differs between versions of click
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="pay88-adapters %(version)s")
@click.pass_context
def pay88(ctx: click.Context) -> int | None:
    """Tools for 88Pay access tokens.

    Configuration is read from environment variables, as in TokenManager.from_env(): PAY88_API_KEY,
    PAY88_MERCHANT_ID, PAY88_ENVIRONMENT or PAY88_BASE_URL, PAY88_STORE and PAY88_FALLBACK_STORE.
    """
    if ctx.invoked_subcommand is not None:
        return None
    click.echo(ctx.get_help(), err=True)
    return USAGE_ERROR
