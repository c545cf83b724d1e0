"""Every message a user of a compiled model can meet, as that user meets it."""

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from spectral_compile import MeanCenter, Rule

MISTAKES = {
    "unknown option 'recip' (did you mean 'recipe'?)": {"recip": "averis"},
    "unknown recipe 'avris' (did you mean 'averis'?)": {"recipe": "avris"},
    "option 'codegen' cannot be 'eagr' (did you mean 'eager'?)": {"codegen": "eagr"},
    "option 'exclude': '(' is not a regular expression": {"exclude": ["("]},
}


@pytest.mark.parametrize(("message", "options"), list(MISTAKES.items()), ids=lambda x: str(x)[:30])
def test_a_wrong_option_is_a_short_value_error(message, options):
    torch._dynamo.reset()
    model = torch.compile(nn.Linear(32, 32), backend="spectral", options=options)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        model(torch.randn(4, 32))
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("unknown mode 'reduce-overhed' (did you mean 'reduce-overhead'?)", {"mode": "reduce-overhed"}),
        (
            "unknown option of 'inductor' 'max_autotun' (did you mean 'max_autotune'?)",
            {"options": {"inductor": {"max_autotun": True}}},
        ),
        (
            "Inductor's joint_custom_pre_pass is taken by this backend",
            {"options": {"inductor": {"joint_custom_pre_pass": print}}},
        ),
    ],
)
def test_what_is_meant_for_inductor_is_checked_too(message, arguments):
    torch._dynamo.reset()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        torch.compile(nn.Linear(32, 32), backend="spectral", **arguments)(torch.randn(4, 32))
    assert str(caught.value).startswith(message)


def test_torch_func_inside_the_graph_stays_in_high_precision_with_a_warning():
    layer = nn.Linear(32, 32)

    def gradient(weight, x):
        return torch.func.grad(lambda w: nn.functional.linear(x, w).sin().sum())(weight)

    torch._dynamo.reset()
    x = torch.randn(64, 32)
    step = torch.compile(gradient, backend="spectral", options={"codegen": "eager"})
    with pytest.warns(UserWarning, match=r"torch\.func\.grad inside the graph"):
        ours = step(layer.weight, x)
    assert torch.allclose(ours, gradient(layer.weight, x), rtol=1e-5, atol=1e-6)


def test_a_rule_that_matches_nothing_is_a_warning():
    torch._dynamo.reset()
    options = {"codegen": "eager", "exclude": ["lm_hed"]}
    model = torch.compile(nn.Linear(32, 32), backend="spectral", options=options)
    with pytest.warns(UserWarning, match="the rule for layers 'lm_hed' matches no layer of this graph"):
        model(torch.randn(4, 32))


def test_rules_are_a_warning_where_nothing_is_quantised():
    torch._dynamo.reset()
    options = {"codegen": "eager", "recipe": "none", "rules": [Rule(high_precision=True)], "passes": [MeanCenter()]}
    model = torch.compile(nn.Linear(32, 32), backend="spectral", options=options)
    with pytest.warns(UserWarning, match="rules have no effect: recipe 'none' quantises nothing"):
        model(torch.randn(4, 32))


def test_a_rule_that_matches_is_none():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(32, 32)

        def forward(self, x):
            return self.proj(x)

    torch._dynamo.reset()
    model = torch.compile(Model(), backend="spectral", options={"codegen": "eager", "exclude": ["^proj$"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(torch.randn(4, 32))


PROGRAM = """
import torch
model = torch.compile(torch.nn.Linear(32, 32), backend="spectral", options={options})
try:
    print("RESULT", model(torch.randn(64, 32)).shape)
except Exception as error:
    print("RESULT", type(error).__name__, error)
"""


def run(options, **environment):
    """A user's program: no import of ours, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{options}", repr(options))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "RESULT" in done.stdout, done.stderr[-2000:]
    return done.stdout.partition("RESULT ")[2].strip()


def test_without_a_compiler_one_line_says_what_to_install_and_the_way_on(tmp_path):
    nowhere = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    message = run({}, **nowhere)
    assert message.startswith("RuntimeError no C++ compiler found: install g++")
    assert "\n" not in message
    assert '{"codegen": "eager"}' in message
    assert run({"codegen": "eager"}, **nowhere) == "torch.Size([64, 32])"
