"""The command line: which commands there are, and the one place that prints errors and sets the exit status.

Whatever is heavy is imported by the command that needs it, when it runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback

import click

from edgewatt.harness.commands.devices import devices, doctor
from edgewatt.harness.commands.measuring import calibrate, run
from edgewatt.harness.commands.reports import report
from edgewatt.harness.commands.runs import answers, attach, export, list_runs, recompute, show
from edgewatt.harness.commands.terminal import USAGE, complain, one_line
from edgewatt.harness.commands.tools import agent, convert


@click.group(
    commands=[
        devices, doctor,
        run, calibrate,
        list_runs, show, recompute, attach, answers, export,
        report,
        convert, agent,
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)  # fmt: skip
@click.version_option(package_name="edgewatt", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Benchmark vision models on edge devices, with joules that carry an error bar and a boundary."""


def _interrupt_once(signum: int, frame: object) -> None:
    """The first Ctrl-C (or SIGTERM) stops what runs and lets it clean up; further ones are told to wait."""
    signal.signal(signal.SIGINT, lambda *_: complain("stopping; one moment"))
    signal.signal(signal.SIGTERM, lambda *_: None)
    raise KeyboardInterrupt


def run_command(arguments: list[str] | None = None) -> int:
    """Runs one command; its exit status. Errors are one line on stderr, a traceback only with --debug."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments  # wherever it stands
    try:
        cli.main(args=[a for a in arguments if a != "--debug"], prog_name="edgewatt", standalone_mode=False)
        return 0
    except SystemExit as stop:
        return int(stop.code or 0)
    except (KeyboardInterrupt, click.Abort):
        complain("edgewatt: stopped by hand; nothing was left half-written")
        return USAGE
    except click.ClickException as error:
        complain(f"edgewatt: {error.format_message().rstrip('.')}; see `edgewatt --help`".replace("\n", " "))
        return USAGE
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  the reader went away; nothing more to say
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _explained(error)


def _explained(error: Exception) -> int:
    from edgewatt.harness.api import HarnessError

    if isinstance(error, HarnessError):
        complain(one_line(f"edgewatt: {error}"))
    else:
        complain(
            one_line(f"edgewatt: unexpected {type(error).__name__}: {error}")[:500]
            + "; run again with `edgewatt --debug ...` to see where"
        )
    return USAGE  # FAILED is kept for a run that is stored with its error


def _raise_again(ignored: sys.UnraisableHookArgs) -> None:
    """An interrupt inside a finaliser or a callback is swallowed by Python: it is sent again, a moment later."""
    if ignored.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(ignored)
        return
    _listen()
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    again = threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGINT))
    again.daemon = True  # a command that is over by then has nothing to interrupt
    again.start()


def _listen() -> None:
    signal.signal(signal.SIGINT, _interrupt_once)
    signal.signal(signal.SIGTERM, _interrupt_once)


def main() -> int:
    """Entry for the installed command."""
    sys.unraisablehook = _raise_again
    _listen()
    return run_command()
