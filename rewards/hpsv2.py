"""HPS v2.0: the human preference score with its first published checkpoint."""

from sdpo_bench.rewards._hps import HpsReward, hps_weights


class HPSv2(HpsReward):
    """Human preference score v2.0, cosine of image and prompt (HPSv2, arXiv 2306.09341)."""

    name = "hpsv2"
    hps_version = "v2.0"
    source = "arXiv 2306.09341; tgxs002/HPSv2; checkpoint xswu/HPSv2: HPS_v2_compressed.pt"
    weights = hps_weights("v2.0")
