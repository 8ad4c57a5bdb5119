"""A study of more panels than can be looked at one by one: what its page leaves out."""

import pytest

from analysis.questions.plw import rank_section, section, shape_section
from analysis.questions.plw.across import across_model
from analysis.questions.plw.headline_section import headlines
from analysis.regression import study as studies
from analysis.regression.model import Request
from analysis.report.build import fitted_study
from analysis.report.page import Plate, Sheet
from analysis.table.frame import from_results
from tests.fake_results import fake_results


@pytest.fixture(scope="module")
def raw():
    return fake_results(2, seeds=2, controls=False)


def made(raw):
    return fitted_study(raw, from_results(raw), None, Request())


def test_curves_and_the_common_model_are_left_out_and_effects_stay(raw, monkeypatch):
    usual = made(raw)
    assert not usual.many
    before = section.section(usual)
    assert any(isinstance(block, Plate) for block in before.blocks)
    monkeypatch.setattr(studies, "MANY", 1)
    study = made(raw)
    assert study.many
    page = section.section(study)
    assert not any(isinstance(block, Plate) for block in page.blocks)
    [sheet] = [block for block in page.blocks if isinstance(block, Sheet)]
    assert len(sheet.table.frame) == len(
        next(b for b in before.blocks if isinstance(b, Sheet)).table.frame
    )
    assert "too many to look at one by one" in page.blocks[1].text
    assert shape_section.section(study) is None
    assert rank_section.section(study) is None
    assert across_model(study) is None
    assert len(headlines(study)) == len(headlines(usual))
