"""What a user sees when the input is bad: a plain, short exception, not Dynamo's `BackendCompilerFailed`."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from spectral_compile._torch import ShortenTraceback


class _PlainForTheUser(ShortenTraceback):
    """Raised inside a backend, Dynamo passes it on and asks `remove_dynamo_frames` for what the user shall see."""

    def __init__(self, message: str) -> None:
        super().__init__(message, first_useful_frame=None)
        self.message = message  # Dynamo adds advice for its own developers to `args`

    def remove_dynamo_frames(self) -> Any:
        return self.plain()

    def plain(self) -> Exception:
        """The builtin exception with the same message."""
        raise AssertionError("each subclass names its builtin exception")


class SpectralValueError(_PlainForTheUser, ValueError):
    """A wrong option or input. Reaches the user of a compiled function as `ValueError`."""

    def plain(self) -> Exception:
        return ValueError(self.message)


class SpectralRuntimeError(_PlainForTheUser, RuntimeError):
    """Something is missing on this machine. Reaches the user of a compiled function as `RuntimeError`."""

    def plain(self) -> Exception:
        return RuntimeError(self.message)


@contextlib.contextmanager
def harmless(what: str) -> Iterator[None]:
    """What is only to be looked at must not end a training: a failure is a warning. Also a decorator."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"spectral: {what} could not be written: {type(error).__name__}: {error}", stacklevel=3)
