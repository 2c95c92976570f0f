"""A code location as it ships, of the sample's oldest documents and without judged queries."""

import dagster as dg

from embedding_assets.collection.resources import shared_resources
from embedding_assets.collection.settings import CollectionSettings
from embedding_assets.component import collection_definitions
from resources.dagster_instance.executor import one_process_executor
from tests.support.checkout import PROJECT

settings = CollectionSettings.model_validate(
    {
        "name": "peps",
        "source": {
            "path": str(PROJECT / "sample_data" / "peps-2000s.jsonl.gz"),
            "fields": {"timestamp": "created"},
        },
        "partitions": {"by": "year", "start": "2000-01-01"},
    }
)
defs = dg.Definitions.merge(
    collection_definitions(settings),
    dg.Definitions(resources=shared_resources(), executor=one_process_executor),
)
