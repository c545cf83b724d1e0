"""What Dynamo's guards compare: it changes when the configuration does, and only then."""

from typing import Any

import pytest
from torch import nn

from spectral_compile import MeanCenter, configure, exclude, register_pass, unregister_pass, watch
from spectral_compile.watch import Watch


def test_options_changed_in_place_are_seen_however_deep() -> None:
    options: dict[str, Any] = {"recipe": "averis", "exclude": ["a"]}
    watched = Watch(options, ())
    keys = [watched.key, watched.key]
    assert keys[0] == keys[1]
    options["recipe"] = "none"
    keys.append(watched.key)
    options["exclude"].append("b")
    keys.append(watched.key)
    options["passes"] = [MeanCenter(min_rows=1)]
    keys.append(watched.key)
    options["passes"] = [MeanCenter(min_rows=2)]
    keys.append(watched.key)
    assert len(set(keys)) == len(keys) - 1


def test_the_environment_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECTRAL_DISABLE", raising=False)
    watched = Watch(None, ())
    before = watched.key
    monkeypatch.setenv("SPECTRAL_DISABLE", "1")
    assert watched.key != before


def test_what_is_configured_for_the_own_modules_is_seen_and_for_others_is_not() -> None:
    class Mine(nn.Module):
        pass

    module, other, first = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    exclude(first)  # from here on modules of a class are told apart
    watched = Watch(None, (Mine, module))
    keys = [watched.key]
    exclude(other)
    assert watched.key == keys[0]
    exclude(module)
    keys.append(watched.key)
    configure(recipe="mxfp4")(Mine)
    keys.append(watched.key)
    assert len(set(keys)) == 3


def test_registered_passes_and_decorated_callers_are_seen() -> None:
    watched = Watch(None, ())
    before = watched.key

    @register_pass(name="for_test_watch")
    def nothing(graph: Any, options: Any) -> None:
        """Changes nothing."""

    try:
        assert watched.key != before
    finally:
        unregister_pass("for_test_watch")
    assert watched.key == before
    assert configure(recipe="mxfp4")(lambda: watched.key)() != before


def test_a_watch_is_found_by_its_name_in_the_module_and_kept() -> None:
    first, second = {"recipe": "none"}, {"recipe": "none"}
    name = watch.watch(first, ())
    assert watch.watch(first, ()) == name
    assert watch.watch(second, ()) != name
    assert watch.watch(first, (nn.Linear,)) != name
    assert watch.watch(None, ()) == watch.watch(None, ())
    first["recipe"] = "averis"
    assert getattr(watch, name).key == Watch(first, ()).key
