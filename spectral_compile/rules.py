"""Rules on a layer's path: which layers the user wants left alone."""

import re
from collections.abc import Iterable

from spectral_compile.errors import SpectralValueError


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A regular expression on layer paths, as in "layers.3.mlp.up_proj". A wrong one is a ValueError."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise SpectralValueError(f"option 'exclude': {pattern!r} is not a regular expression: {error}") from None


def first_match(patterns: Iterable[str], path: str) -> str | None:
    """The first pattern found anywhere in the path, or None."""
    return next((pattern for pattern in patterns if compile_pattern(pattern).search(path)), None)


def unmatched(patterns: Iterable[str], paths: Iterable[str]) -> tuple[str, ...]:
    """Patterns that match none of the paths: a rule without effect deserves a word."""
    known = tuple(paths)
    return tuple(pattern for pattern in patterns if not any(compile_pattern(pattern).search(path) for path in known))
