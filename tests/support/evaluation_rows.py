"""Small evaluation tables for the statistics tests."""

import numpy as np
import pandas as pd


def make_rows(scores, method="sdpo", seeds=None, steps=(1, 4), reward="hpsv2", version="1", split="test"):
    """Evaluation rows from an array [S, P, K, I]."""
    scores = np.asarray(scores, dtype=float)
    seeds = range(scores.shape[0]) if seeds is None else seeds
    return pd.DataFrame(
        [
            {
                "run": f"{method}-s{seed}",
                "method": method,
                "seed": seed,
                "prompt": f"prompt {p}",
                "split": split,
                "image": i,
                "steps": steps[k],
                "reward": reward,
                "version": version,
                "score": scores[s, p, k, i],
            }
            for s, seed in enumerate(seeds)
            for p in range(scores.shape[1])
            for k in range(scores.shape[2])
            for i in range(scores.shape[3])
        ]
    )
