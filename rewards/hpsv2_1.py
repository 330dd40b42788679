"""HPS v2.1: the later checkpoint of the human preference score; its numbers are not those of v2.0."""

from sdpo_bench.rewards._hps import HpsReward, hps_weights


class HPSv21(HpsReward):
    """Human preference score v2.1, cosine of image and prompt (HPSv2, arXiv 2306.09341)."""

    name = "hpsv2.1"
    hps_version = "v2.1"
    source = "arXiv 2306.09341; tgxs002/HPSv2; checkpoint xswu/HPSv2: HPS_v2.1_compressed.pt"
    weights = hps_weights("v2.1")
