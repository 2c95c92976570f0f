"""What a cache certainly does not hold, told without a look into it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_PREFIX_BYTES = 8


@dataclass(frozen=True)
class KeyFilter:
    """The first eight bytes of all content hashes that a cache held at some moment, by space.

    Attributes:
        version: what `EmbeddingCache.version` said before they were read.
        prefixes: shape (entries,), uint64, sorted.
    """

    version: object
    prefixes: np.ndarray

    def may_hold(self, content_hashes: Sequence[bytes]) -> np.ndarray:
        """Whether each of n hashes may be held, shape (n,), bool.

        True for one that is not held with a probability of 2^-64 times the number of entries.
        """
        if not len(self.prefixes):
            return np.zeros(len(content_hashes), dtype=bool)
        asked = _prefixes(content_hashes)
        places = np.searchsorted(self.prefixes, asked)
        return self.prefixes[np.minimum(places, len(self.prefixes) - 1)] == asked

    def with_keys(self, content_hashes: Sequence[bytes], version: object) -> "KeyFilter":
        """The filter after these were written, and nothing else."""
        added = np.sort(_prefixes(content_hashes))
        places = np.searchsorted(self.prefixes, added)
        return KeyFilter(version, np.insert(self.prefixes, places, added))


def _prefixes(content_hashes: Sequence[bytes]) -> np.ndarray:
    joined = b"".join(key[:_PREFIX_BYTES] for key in content_hashes)
    return np.frombuffer(joined, ">u8").astype(np.uint64)
