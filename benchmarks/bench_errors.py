"""Why an arm does not work, in one line of a table."""

import traceback
from pathlib import Path

_LONGEST = 160


def reason(error: BaseException) -> str:
    """The first line of what went wrong, and where: a bare assertion says nothing else."""
    inner = getattr(error, "inner_exception", None)
    error = inner if isinstance(inner, BaseException) else error
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].name} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = f"{type(error).__name__}{': ' if said else ''}{said}"
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...") + where
