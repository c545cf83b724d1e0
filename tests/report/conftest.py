"""A dump to make reports of: of a model whose modules have the names that an attacker would give them."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from spectral_compile.report import page
from tests.capture import capture

IMAGE = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(2)</script><!--"


class Hostile(nn.Module):
    """Two layers and a head; the names of the layers are markup."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({IMAGE: nn.Linear(32, 64), "{{data}}": nn.Linear(64, 32)})
        self.add_module(SCRIPT, nn.Linear(32, 32))
        self.head = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for part in self.parts.values():
            x = part(x).relu()
        return nn.functional.cross_entropy(self.head(getattr(self, SCRIPT)(x)), y)


@pytest.fixture(scope="session")
def hostile_dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its graph, with measurements as training writes them, the last one half written."""
    folder = tmp_path_factory.mktemp("hostile")
    capture(Hostile(), torch.randn(64, 32), torch.randint(0, 16, (64,)), loss=_itself, dump=str(folder))
    measured = [
        {"step": step, "layer": f"parts.{IMAGE}", "role": "fprop", "operand": operand, "snr_db": snr, "new": [1]}
        for step in (0, 10)
        for operand, snr in (("activation", 18.5 - step / 10), ("weight", 21.0), ("gradient", float("nan")))
    ]
    text = "\n".join(map(json.dumps, measured)) + '\n{"step": 20, "layer": "he'
    (folder / "000" / "numerics.jsonl").write_text(text)
    page.write(folder / "000")
    return folder / "000"


def _itself(loss: torch.Tensor) -> torch.Tensor:
    return loss
