"""Named random streams: independent, reproducible, and put back exactly."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.seeds import NAMES
from harness.streams import Streams


@given(st.integers(0, 2**31), st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_streams_do_not_shift_one_another(seed: int, one: str, other: str) -> None:
    alone, beside = Streams(seed), Streams(seed)
    if one != other:
        torch.rand(5, generator=beside.torch(other))
        beside.numpy(other).random(3)
    assert torch.equal(torch.rand(4, generator=alone.torch(one)), torch.rand(4, generator=beside.torch(one)))


def test_a_stream_may_have_a_seed_of_its_own() -> None:
    fixed = [Streams({"init": seed, "split": 0}) for seed in (1, 2)]
    assert fixed[0].seed("split") == fixed[1].seed("split") == Streams(0).seed("split")
    assert fixed[0].seed("data") == Streams(1).seed("data") != fixed[1].seed("data")


def test_positions_are_put_back() -> None:
    streams = Streams(3)
    torch.rand(3, generator=streams.torch("data"))
    streams.numpy("environment").random(2)
    saved = streams.state_dict()
    expected = torch.rand(4, generator=streams.torch("data")), streams.numpy("environment").random(4)
    other = Streams(3)
    other.load_state_dict(saved)
    assert torch.equal(torch.rand(4, generator=other.torch("data")), expected[0])
    assert (other.numpy("environment").random(4) == expected[1]).all()


def test_the_default_generator_is_put_back() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with Streams(1).default("init"):
        drawn = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    with Streams(1).default("init"):
        assert torch.equal(torch.rand(2), drawn)
