"""How a run is coming along: a bar on a terminal, a plain line a stage elsewhere; always on stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from edgewatt.harness.measure import Progress

WORDS = {
    "prepare": "preparing the model and the pictures",
    "load": "loading the model",
    "idle": "idle power",
    "warmup": "warming up until steady",
    "window": "measuring",
    "pulse": "pulses for the recording",
}


def in_words(step: Progress) -> str:
    """The stage a run is in, for a person."""
    what = WORDS.get(step.stage, f"{step.stage} alone")
    is_once = step.stage in ("prepare", "load", "pulse")
    return what if is_once else f"{what} (repeat {step.repeat + 1} of {step.repeats})"


@contextlib.contextmanager
def shown(quiet: bool = False) -> Iterator[Callable[[Progress], None]]:
    """A function that shows each step; with `quiet` it shows nothing."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        last = ""

        def line(step: Progress) -> None:
            nonlocal last
            if step.stage not in ("prepare", "load") and in_words(step) != last:  # a refusal stays a single line
                last = in_words(step)
                print(last, file=sys.stderr, flush=True)

        yield line


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[items]}"))
    times = (TimeElapsedColumn(), TextColumn("to go"), TimeRemainingColumn())
    with Bar(*columns, *times, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0, items="")
        stage = ""

        def show(step: Progress) -> None:
            nonlocal stage
            if in_words(step) != stage:  # the time to go is that of the stage in hand
                stage = in_words(step)
                bar.reset(task)
            items = ", ".join(f"{n} {of}" for n, of in ((step.items, "items"), (step.tokens, "tokens")) if n)
            bar.update(task, description=stage, completed=min(step.share, 1.0), items=items)

        yield show
