"""How near vectors are to those they should equal."""

import numpy as np

MIN_COSINE_OF_SPACE = 0.999
"""Numeric precision alone leaves a vector of the same embedding space at least so near."""

MIN_COSINE: dict[str, float] = {"fp32": 1 - 1e-6, "bf16": 0.9999, "fp16": 0.9999}
"""By precision: each vector of a self-check must be as near to sentence-transformers' in fp32."""


def least_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The least cosine of any row.

    Args:
        ours: shape (n, dimension), float32.
        theirs: the same.

    Returns:
        -1 if the shapes differ or a vector is zero or not finite; 1 for no vectors.
    """
    if ours.shape != theirs.shape:
        return -1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        products = np.einsum("ij,ij->i", ours, theirs, dtype=np.float64)
        norms = np.linalg.norm(ours.astype(np.float64), axis=1)
        cosines = products / (norms * np.linalg.norm(theirs.astype(np.float64), axis=1))
    return float(np.nan_to_num(cosines, nan=-1.0, posinf=-1.0).min(initial=1.0))


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors of shape (n, dimension) with norm 1, in float32.

    One that is zero, or not finite, is not finite afterwards.
    """
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        return (vectors / norms).astype(np.float32)
