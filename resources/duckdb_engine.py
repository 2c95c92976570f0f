"""DuckDB, made to give back what it has freed; to be imported from here."""

import os

# Its allocator (jemalloc) reads this once, when it is loaded. By default it keeps freed memory for
# ten seconds in case that it is wanted again: 55 MB in a run that indexes 200,000 chunks. Without
# any such time, queries that allocate much took up to a third longer.
os.environ.setdefault("DUCKDB_JE_MALLOC_CONF", "dirty_decay_ms:50,muzzy_decay_ms:0")

import duckdb

__all__ = ["duckdb"]
