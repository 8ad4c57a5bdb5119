"""Hours and memory of a GPU that a plan says, beside what was measured (docs/benchmarks.md)."""

import pytest

from ablate.config.composer import config_loader
from ablate.experiment.cost import cost
from ablate.experiment.gpu_fit import need
from ablate.experiment.gpu_pace import gpu_seconds
from ablate.experiment.known import Assumed
from ablate.experiment.request import plan_grid
from ablate.experiment.scoring_memory import scoring_parts
from ablate.results.store import Store

LOADER = config_loader()
SEVEN = (
    "model=llama_2_7b dataset=alpaca train=alpaca train.batch_size=64 base_precision=bf16"
    " evaluate=none"
)
AGAIN = "execution.gradient_checkpointing=true"
MEASURED = [  # tokens a second of an H100 (the last: H200), 64 rows a step
    ("adapter=lora", 11_400),
    (f"adapter=lora {AGAIN}", 9_340),
    (f"adapter=full embeddings=trained optimizer=adamw_8bit {AGAIN}", 4_630),
    (f"adapter=full embeddings=trained execution.offload_optimizer=true {AGAIN}", 2_400),
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("ablate.hub.unreachable", lambda: "no network")
    monkeypatch.setattr("ablate.models.folders._copy", lambda path, revision: None)


def cells(asked, out):
    request = plan_grid([*asked.split(), f"out={out}"], known=Assumed(), loader=LOADER)
    return request.design.cells


def the_cell(asked, out):
    (named,) = (n for n in cells(asked, out) if not n.cell.is_base)
    return named


@pytest.mark.parametrize(("asked", "tokens_a_second"), MEASURED)
def test_the_speed_of_7_billion_parameters_is_the_measured_one(asked, tokens_a_second, tmp_path):
    named = the_cell(f"{SEVEN} {asked}", tmp_path)
    data, train = named.identity.data, named.cell.train
    spent = gpu_seconds(named, 0.0, rows=64)
    assert spent.score == 0
    speed = data.rows * train.epochs * data.mean_length / spent.train
    assert speed == pytest.approx(tokens_a_second, rel=0.2)


def test_recomputing_and_offloading_cost_time(tmp_path):
    plain, again, away = (
        gpu_seconds(the_cell(f"{SEVEN} adapter=full {more}", tmp_path), 0.0, rows=64).train
        for more in ("", AGAIN, "execution.offload_optimizer=true")
    )
    assert plain < again < away


def test_training_and_scoring_are_told_apart(tmp_path):
    asked = f"{SEVEN} adapter=lora evaluate=forgetting".replace(" evaluate=none", "")
    half, exact = (
        cost(cells(f"{asked} {more}", tmp_path), Store(tmp_path), gpu_bytes=1e12)
        for more in ("", "base_precision=fp32")
    )
    base, run = half.gpu_seconds
    assert base.train == 0 < base.score == run.score  # the base is scored on the same
    assert half.gpu_training_hours == pytest.approx(run.train / 3600)
    assert exact.gpu_seconds[1].train == pytest.approx(run.train)  # bf16 arithmetic in both
    assert exact.gpu_seconds[1].score > 5 * run.score  # measured: 7 times as long in fp32


def test_a_run_of_7_billion_parameters_belongs_on_a_gpu(tmp_path):
    """And its hours there come first; a micro run's come from this machine."""
    large = cost([the_cell(f"{SEVEN} adapter=lora", tmp_path)], Store(tmp_path))
    small = cost([the_cell("adapter=lora", tmp_path)], Store(tmp_path))
    assert (large.on_gpu, large.gpu_measured) == (True, True)
    assert (small.on_gpu, small.gpu_measured) == (False, False)


def test_long_runs_write_checkpoints_and_short_ones_none(tmp_path):
    """Three of 14 bytes a parameter that trains in a copy of a 16-bit weight."""
    named = the_cell(f"{SEVEN} adapter=full embeddings=trained", tmp_path)
    found = cost([named], Store(tmp_path)).checkpoint_bytes
    assert found == 3 * 14 * named.identity.files.parameters
    for off in ("execution.checkpoint_minutes=null", "execution.checkpoint_minutes=9999"):
        other = the_cell(f"{SEVEN} adapter=full embeddings=trained {off}", tmp_path)
        assert cost([other], Store(tmp_path)).checkpoint_bytes == 0


# --- the memory of scoring


def test_scoring_takes_what_was_measured_at_a_billion_parameters(tmp_path):
    """The shape and batches of `benchmarks.gpu.evaluate`: GiB of choices in fp32, of rows in bf16.

    Of its 64 questions the longest has 300 tokens, with its answers; of the held-out rows 512.
    """
    shape = (
        "model=llama_3_2_1b dataset=alpaca adapter=lora evaluate=forgetting train.max_length=512"
    )
    exact = the_cell(f"{shape} execution.eval_batch_tokens=20000", tmp_path)
    half = the_cell(f"{shape} base_precision=bf16", tmp_path)
    for named, gib, weights in ((exact, 6.6 - 4.1, 4), (half, 4.1 - 2.05, 2)):
        parts = scoring_parts(named)
        assert parts["weights"] == pytest.approx(weights * named.identity.files.parameters, rel=0.1)
        assert sum(parts.values()) - parts["weights"] == pytest.approx(gib * 2**30, rel=0.35)


def test_an_untouched_base_that_a_gpu_does_not_hold_is_told_with_the_cures(tmp_path):
    """27 GB of fp32 weights on 24 GB: in 16 bits it fits, as it does where nothing is scored."""
    asked = "model=llama_2_7b dataset=alpaca adapter=lora train=alpaca evaluate=forgetting"
    base, _ = cells(asked, tmp_path)
    wanted = need(base, 24e9)
    assert not wanted.fits
    assert wanted.parts == {}
    assert wanted.scoring["weights"] == 4 * base.identity.files.parameters
    assert [cure for cure, _ in wanted.cures] == ["base_precision=bf16"]
    in_bf16 = cells(f"{asked} base_precision=bf16", tmp_path)[0]
    assert need(in_bf16, 24e9).fits
    assert [n.cell.is_base for n in cells(f"{asked} score_base=false", tmp_path)] == [False]


def test_scoring_shrinks_its_batch_before_it_does_not_fit(tmp_path):
    asked = "model=llama_2_7b dataset=alpaca adapter=lora train=alpaca evaluate=forgetting"
    run = cells(asked, tmp_path)[1]
    roomy, tight = need(run, 80e9), need(run, 30e9)
    assert roomy.scoring_rows == 64 > tight.scoring_rows >= 1
    assert sum(tight.scoring.values()) < 30e9 < sum(roomy.scoring.values())
    half = cells(f"{asked} evaluate.precision=bf16", tmp_path)[1]  # a copy beside fp32 weights
    assert scoring_parts(half)["weights"] > scoring_parts(run)["weights"]
