"""The Vendi score: how many different pictures there are among some, given how alike each two are."""

import numpy as np


def vendi_score(similarity: np.ndarray) -> np.ndarray:
    """Effective number of different items, between 1 (all alike) and ``n`` (no two alike).

    The exponential of the von Neumann entropy of ``similarity / n``: ``exp(-sum(x log x))`` over its eigenvalues
    ``x``. Source: Friedman and Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", TMLR 2023,
    definition 3.1.

    Args:
        similarity: ``[..., n, n]``, symmetric, positive semidefinite, ones on the diagonal (such as cosines).

    Returns:
        ``[...]``.
    """
    # Rounding can leave an eigenvalue of 0 slightly below it; 0 log 0 is 0.
    eigenvalues = np.clip(np.linalg.eigvalsh(similarity / similarity.shape[-1]), 0.0, None)
    logarithms = np.log(np.where(eigenvalues > 0, eigenvalues, 1.0))
    return np.asarray(np.exp(-(eigenvalues * logarithms).sum(axis=-1)))
