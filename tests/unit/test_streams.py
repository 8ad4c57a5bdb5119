import hashlib

import numpy as np
import pytest
import torch

from ablate.streams import Streams


def test_a_stream_is_a_function_of_its_seed_and_its_name() -> None:
    first = Streams(3).torch("init", "lora", "layer.0")
    again = Streams(3).torch("init", "lora", "layer.0")
    torch.testing.assert_close(
        torch.randn(5, generator=first), torch.randn(5, generator=again), rtol=0, atol=0
    )
    a, b = (Streams(3).numpy("order").permutation(50) for _ in range(2))
    np.testing.assert_array_equal(a, b)


def test_seeds_are_pinned() -> None:
    """A stored result stays reproducible: the derivation may not change by accident."""
    digest = hashlib.sha256(b"int1:0|str5:order").digest()
    assert Streams(0).seed("order") == int.from_bytes(digest[:8], "big") >> 1
    assert Streams(0, "b").seed("order") != Streams(0).seed("order")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "a", ("order",)), (1, "a", ("order",))),
        ((0, "a", ("order",)), (0, "b", ("order",))),
        ((0, "b", ("order",)), (0, "c", ("order",))),
        ((0, "a", ("order",)), (0, "a", ("init",))),
        ((0, "a", ("ab", "c")), (0, "a", ("a", "bc"))),
        ((0, "a", ("a|b",)), (0, "a", ("a", "b"))),
        ((0, "a", (1,)), (0, "a", ("1",))),
        ((0, "b", ("order",)), (0, "a", ("sham", "b", "order", "x"))),
    ],
)
def test_another_seed_label_or_name_is_another_stream(one: tuple, other: tuple) -> None:
    (seed, sham, names), (seed2, sham2, names2) = one, other
    assert Streams(seed, sham).seed(*names) != Streams(seed2, sham2).seed(*names2)
    draws = [
        Streams(s, h).numpy(*n).integers(2**62, size=4)
        for s, h, n in ((seed, sham, names), (seed2, sham2, names2))
    ]
    assert not np.array_equal(*draws)


def test_the_plain_label_is_the_plain_seed() -> None:
    assert Streams(5, "a").seed("order") == Streams(5).seed("order")


def test_streams_are_uncorrelated() -> None:
    draws = np.stack([Streams(s).numpy("order").standard_normal(2000) for s in range(20)])
    largest = np.abs(np.corrcoef(draws) - np.eye(20)).max()
    assert largest < 5 / np.sqrt(2000)  # 190 pairs at five standard errors


def test_the_global_generators_are_left_as_they_were() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with Streams(1).global_torch("dropout"):
        inside = torch.rand(3)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    with Streams(1).global_torch("dropout"):
        torch.testing.assert_close(torch.rand(3), inside, rtol=0, atol=0)
