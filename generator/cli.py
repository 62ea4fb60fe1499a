"""`dsv4-gen`: from specs to compiled, checked kernels."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import typer
from typer.exceptions import TyperException

from dsv4.generator.commands import build, clean, emit, explain, listing, verify
from dsv4.generator.console import EXIT_FAILED, EXIT_OK, EXIT_USAGE, CheckFailed, UsageError, err
from dsv4.generator.emit import EmitError
from dsv4.generator.entry import EXIT_INTERRUPTED
from dsv4.generator.resources import Refused
from dsv4.generator.spec import SpecError
from dsv4.runtime.errors import CacheRefused, Dsv4Error, Dsv4Warning

INTERRUPTED = "interrupted; what was finished is kept"

EPILOG = """Examples:

  dsv4-gen list                                   what can be built, and what is in the cache

  dsv4-gen explain fmha --arch sm_100a            the budget of a kernel, line by line

  dsv4-gen build --op fmha --arch sm_90a          compile the defaults of one operator

  dsv4-gen emit --check                           is generated/ up to date?
"""

app = typer.Typer(
    name="dsv4-gen",
    help="Generate, compile and check DeepSeek-V4 kernels.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("list")(listing.list_kernels)
app.command("emit")(emit.emit_sources)
app.command("build")(build.build_kernels)
app.command("explain")(explain.explain_kernel)
app.command("verify")(verify.verify_kernels)
app.command("clean")(clean.clean_cache)


@app.callback()
def options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Generate, compile and check DeepSeek-V4 kernels."""


def run(application: typer.Typer, arguments: list[str]) -> int:
    """Run a command line; returns its exit code. Known errors become one line on standard error."""
    debug = "--debug" in arguments
    try:
        with _warnings_in_a_line(str(application.info.name)):
            code = application(args=arguments, standalone_mode=False)
        if code != EXIT_INTERRUPTED:
            return code if isinstance(code, int) else EXIT_OK
        message = INTERRUPTED
    except typer.Exit as done:
        return done.exit_code
    except TyperException as problem:
        message, code = problem.format_message(), EXIT_USAGE
    except (UsageError, SpecError, Refused, EmitError, CacheRefused) as problem:
        if debug:
            raise
        message, code = str(problem), EXIT_USAGE
    except (CheckFailed, Dsv4Error, OSError) as problem:
        if debug:
            raise
        message, code = str(problem), EXIT_FAILED
    except (KeyboardInterrupt, typer.Abort):
        message, code = INTERRUPTED, EXIT_INTERRUPTED
    err.print(f"{application.info.name}: {message}", style="red", markup=False)
    return code


@contextlib.contextmanager
def _warnings_in_a_line(name: str) -> Iterator[None]:
    """While open, what the runtime warns of is told as errors are, without the place in the code."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, Dsv4Warning):
            err.print(f"{name}: {message}", style="yellow", markup=False)
        else:
            shown(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def main() -> None:
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # accepted anywhere on the line
        arguments = ["--debug", *(each for each in arguments if each != "--debug")]
    sys.exit(run(app, arguments))
