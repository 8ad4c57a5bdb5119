"""Compiled blocks: the same training, and a model that is as it was afterwards."""

import pytest
from torch import nn

from ablate.models import compiled
from tests import levels, toys

pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler, while it traces


def fitted(**execution):
    cell = levels.cell("lora", execution=toys.execution(**execution))
    model = levels.applied(cell)
    return levels.fit(model, cell), model


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_training_is_the_same(layout, monkeypatch):
    """With the compiler's graphs, run operation by operation: no C++ compiler is asked for."""
    calls = []
    compile = nn.Module.compile

    def counted(module, **settings):
        calls.append(module)
        compile(module, **settings)

    monkeypatch.setattr(nn.Module, "compile", counted)
    monkeypatch.setattr(compiled, "SETTINGS", {"dynamic": True, "backend": "eager"})
    plain, _ = fitted(layout=layout)
    found, model = fitted(layout=layout, compile=True)
    assert found == pytest.approx(plain, rel=1e-5)
    assert len(calls) == 2
    assert all(call._compiled_call_impl is None for call in calls)
    assert all(call in set(model.modules()) for call in calls)


def test_the_blocks_are_the_layers_of_the_decoder():
    model = levels.applied(levels.cell("lora"))
    assert compiled.blocks(model) == list(model.get_base_model().model.layers)
    assert compiled.blocks(nn.Linear(2, 2)) == []
