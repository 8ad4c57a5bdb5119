"""The guard on decoding: falls of a score that the loss does not explain are seen, others not."""

from pathlib import Path

import numpy as np
import pytest
import torch

import ablate.micro
from ablate.commands.guard_decoding import LEVELS, MARGIN, Course, answer_loss, unexplained

MICRO_0 = Path(ablate.micro.__file__).parent / "checkpoints" / "micro_0"
FLAT = np.full(len(LEVELS), 0.65)
HOLE = np.array([37.0, 37.0, 20.0, 4.0, 1.0, 5.0, 27.0, 26.0])


def course(score_L, loss_L, *, seed=0):
    """Return three replicates around the given means, that differ in level."""
    rng = np.random.default_rng(seed)
    shape = (3, len(LEVELS))
    score_RL = score_L + rng.normal(0, 8, (3, 1)) + rng.normal(0, 2, shape)
    loss_RL = loss_L + rng.normal(0, 0.05, (3, 1)) + rng.normal(0, 0.002, shape)
    return Course(score_RL, loss_RL)


def test_a_hole_under_an_unchanged_loss_is_seen():
    points, levels = unexplained(course(HOLE, FLAT))
    assert points > 25
    assert {LEVELS[level] for level in levels} & {0.05, 0.1}


def test_a_hole_beside_a_rising_loss_is_seen_and_one_that_follows_the_loss_is_not():
    rising_L = FLAT + np.linspace(0, 0.06, len(LEVELS))
    assert unexplained(course(HOLE, rising_L))[0] > 15
    assert unexplained(course(HOLE, 1 - HOLE / 100))[0] < MARGIN


def test_a_score_that_falls_with_a_rising_loss_is_an_effect():
    falling_L = np.linspace(60, 30, len(LEVELS))
    assert unexplained(course(falling_L, 1 - falling_L / 100))[0] < MARGIN


def test_noise_alone_stays_below_the_margin():
    found = [unexplained(course(HOLE[:1], FLAT, seed=seed))[0] for seed in range(200)]
    assert max(found) < MARGIN


def test_two_replicates_are_refused():
    with pytest.raises(ValueError, match="three replicates"):
        unexplained(Course(np.zeros((2, 8)), np.zeros((2, 8))))


def test_the_loss_of_answers_is_that_of_one_item_after_the_other():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ablate.micro.tasks import items

    model = AutoModelForCausalLM.from_pretrained(MICRO_0).eval()
    tokenizer = AutoTokenizer.from_pretrained(MICRO_0)
    summed, targets = 0.0, 0
    for item in items()["micro_translation"][0][:3]:
        whole = tokenizer(item["prompt"] + item["target"], return_tensors="pt").input_ids
        start = len(tokenizer(item["prompt"]).input_ids)
        with torch.inference_mode():
            logs = model(whole).logits[0].log_softmax(-1)
        for at in range(start, whole.shape[1]):
            summed, targets = summed - float(logs[at - 1, whole[0, at]]), targets + 1
    found = answer_loss(model, MICRO_0, "micro_translation", limit=3)
    assert found == pytest.approx(summed / targets, rel=1e-5)
