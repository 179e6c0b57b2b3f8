"""What is said where the parts of the extra `vlm` are not installed."""

from __future__ import annotations

import sys

from edgewatt.harness.api import UsageError


def missing(error: ImportError) -> UsageError:
    """The refusal for a part that could not be imported, with the next step."""
    what = f"has no {error.name}" if isinstance(error, ModuleNotFoundError) else f"cannot load {error.name} ({error})"
    step = "run `pip install 'edgewatt[vlm]'` there"
    return UsageError(" ".join(f"{sys.executable} {what}, which vision-language models need; {step}".split()))
