"""Random streams: begun from the seed, taken, and put back."""

import random

import numpy as np
import torch

from bumblecore_core.run.checkpoint.streams import put_streams, seed_streams, take_streams
from bumblecore_core.toolkit.state_files import read_state, write_state

CPU = torch.device("cpu")


def draw():
    normal = torch.randn(3)  # odd: torch keeps the second of a pair of normals for the next call
    return [*normal.tolist(), np.random.normal(), random.random(), random.gauss(0, 1), *torch.rand(2).tolist()]


def test_streams_that_went_through_files_go_on_where_they_were(tmp_path):
    seed_streams(1, 0)
    draw()
    write_state(tmp_path, "streams", take_streams(CPU))
    expected = [draw(), draw()]
    seed_streams(2, 0)
    put_streams(read_state(tmp_path, "streams"), CPU)
    assert [draw(), draw()] == expected


def test_each_seed_rank_and_step_has_streams_of_its_own():
    drawn = []
    for settings in ((1, 0), (2, 0), (1, 1), (1, 0, 5)):
        seed_streams(*settings)
        drawn.append(draw())
    assert all(a[at] != b[at] for a in drawn for b in drawn if a is not b for at in range(len(a)))
    seed_streams(1, 0)
    assert draw() == drawn[0]
