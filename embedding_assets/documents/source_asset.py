"""The source as an asset that nobody here makes: what it is, and what was last seen of it."""

import dagster as dg

from embedding_assets.collection.collection import CollectionAssets, CollectionResources
from embedding_assets.documents.numbers import SourceFiles


def source_asset(collection: CollectionAssets, declared: CollectionResources) -> dg.AssetSpec:
    """What stands before `documents`; observed by runs and by the sensor that list it anyway."""
    path = collection.settings.source.path
    return dg.AssetSpec(
        collection.source_asset_key,
        **collection.shown(f"Where the documents come from: `{path}`."),
        kinds=declared.source.kinds,
        metadata={"dagster/uri": declared.source.address},
    )


def observation(collection: CollectionAssets, seen: SourceFiles) -> dg.AssetObservation:
    """What was seen of the whole source; its size is that of the files as they are stored."""
    metadata: dict[str, dg.MetadataValue] = {
        "files": dg.MetadataValue.int(seen.files),
        "dagster/size_bytes": dg.MetadataValue.int(seen.bytes),
    }
    if seen.newest is not None:
        metadata["newest_file"] = dg.MetadataValue.timestamp(seen.newest)
    return dg.AssetObservation(
        collection.source_asset_key,
        description=f"{seen.files:,} files, {seen.bytes / 1e6:,.1f} MB.",
        metadata=metadata,
    )
