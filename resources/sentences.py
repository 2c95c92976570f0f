"""Where a sentence ends, in any script."""

import re

SENTENCE_OR_LIST_ITEM = re.compile(
    r"""[.!?…]["'”’»)\]*_`]*\s+|[。！？｡།॥።။۔؟]+\s*|\n\s*(?=(?:[-*+•]|\d{1,3}[.)])\s)"""
)
"""A match ends where a sentence, or an item of a list, may begin."""
