"""The command line. Results go to stdout, progress and complaints to stderr.

Exit status: 0 done or PASS, 1 FAIL, 2 VOID, 3 usage, 4 an error that says what to do, 5 a crash.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence

import typer

from libortho.cli import audit, base, bench, canaries, experiments, look, split, streams
from libortho.errors import LibOrthoError

# The base of all complaints about usage, whichever click typer carries.
_Complaint: type[Exception] = typer.BadParameter.__mro__[2]
USAGE, ERROR, CRASH, INTERRUPTED = 3, 4, 5, 130

app = typer.Typer(
    name="libortho",
    help="Language models in two streams: a public INT4 base, and private streams behind a gate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (experiments, base, streams, split, audit, canaries, look, bench):
    module.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    command = typer.main.get_command(app)
    try:
        status = command.main(
            args=None if arguments is None else list(arguments), standalone_mode=False
        )
    except _Complaint as error:
        error.show(sys.stderr)  # type: ignore[attr-defined]
        return USAGE
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except LibOrthoError as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR
    except Exception:
        traceback.print_exc()
        return CRASH
    return status if isinstance(status, int) else 0
