"""FLOPs of SD-Turbo's UNet, from which the docs derive hours of GPUs."""

import pytest

from benchmarks.scaling import unet_flops


@pytest.mark.slow
def test_the_flops_of_a_unet_pass_include_its_attention():
    # Tokens, channels and blocks with attention of each level: 64x64, 32x32 and 16x16 have two blocks on the way down
    # and three on the way up, 8x8 has the middle block. Two products of 2 N N d (itself) and 2 N 77 d (the prompt).
    levels = [(4096, 320, 5), (1024, 640, 5), (256, 1280, 5), (64, 1280, 1)]
    attention = sum(blocks * 4 * (n * n * d + n * 77 * d) for n, d, blocks in levels)
    # Convolutions, linear layers and the adapter, as counted with attention left out.
    assert unet_flops()["forward"] == 679_349_623_808 + attention
