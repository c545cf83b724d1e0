"""All that decides how a frame is compiled, as a value that Dynamo's guards compare at each call.

Without it, code compiled under one configuration would silently serve another: Dynamo keys its code by the options
*object*, which the user may change in place, and knows nothing of decorators, registered passes or the environment.
"""

import os
import weakref
from collections.abc import Mapping
from typing import Any

from torch import nn

from spectral_compile import configure, registry


class Watch:
    """Of one compiled graph. holders: classes and modules whose configuration it depends on."""

    def __init__(self, options: Mapping[str, Any] | None, holders: tuple[type | nn.Module, ...]) -> None:
        self.options = options  # held, so that identities stay unique
        self.holders = tuple(weakref.ref(holder) for holder in holders)
        self._seen: tuple[int, str] = (-1, "")

    @property
    def key(self) -> str:
        """Changes when the configuration does."""
        environment = [os.environ.get(name, "") for name in ("SPECTRAL_DISABLE", "SPECTRAL_DUMP")]
        passes = registry.digest() if registry.has_registered() else ""
        around = (
            f"{configure.of_function()!r} {configure.any_module()}"  # from the first one on, modules are told apart
        )
        return f"{environment} {dict(self.options or {})!r} {around} {passes} {self._configured()}"

    def _configured(self) -> str:
        """Looked up again only after something was configured somewhere: this runs at each call."""
        changes, seen = self._seen
        if changes != configure.changes():
            alive = [holder for ref in self.holders if (holder := ref()) is not None]
            around = [one for holder in alive if isinstance(holder, nn.Module) for one in configure.enclosing(holder)]
            own = [configure.of_holder(holder) for holder in (*around, *alive)]
            seen = repr([configuration for configuration in own if configuration is not None])
            self._seen = (configure.changes(), seen)
        return seen


def watch(options: Mapping[str, Any] | None, holders: tuple[type | nn.Module, ...]) -> str:
    """The name, in this module, of a Watch on an options object and what modules may hold."""
    for name, known in _watched.items():
        if known.options is options and tuple(ref() for ref in known.holders) == holders:
            return name
    name = f"_watch_{len(_watched)}"
    globals()[name] = _watched[name] = Watch(options, holders)
    return name


_watched: dict[str, Watch] = {}
