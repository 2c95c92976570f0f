"""`EmbeddingCollection`: one YAML file becomes its assets, their checks and their resources."""

import logging
from collections.abc import Sequence
from typing import Any

import click
import dagster as dg
from dagster._utils.warnings import suppress_dagster_warnings
from pydantic import BaseModel, GetJsonSchemaHandler, RootModel
from pydantic_core import CoreSchema

from embedding_assets.collection.collection import CollectionAssets
from embedding_assets.collection.environment import Environment, read_environment
from embedding_assets.collection.missing_files import missing_files
from embedding_assets.collection.mistakes import (
    YamlMistakeError,
    check_keys_come_once,
    located,
    looks_for_mistakes,
    read_settings,
)
from embedding_assets.collection.resources import collection_resources, shared_resources
from embedding_assets.collection.settings import CollectionSettings

_log = logging.getLogger(__name__)
_NEW_COLLECTION = """\
  # Every other setting, with its default and meaning: docs/settings.md.
  source:
    path: {name}/*.jsonl        # file, folder, glob or URL
    # fields: {{id: id, title: title, text: text, timestamp: created}}
  # partitions: {{by: month, start: "2020-01-01"}}     # needs source.fields.timestamp
"""

_WITHOUT_SCHEMA = ("check defs", "asset materialize", "api execute_run", "api execute_step")


class CollectionScaffolder(dg.Scaffolder):
    """What `dg scaffold defs embedding_assets.EmbeddingCollection NAME` writes."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        name = request.target_path.name
        (request.target_path / "defs.yaml").write_text(
            "type: embedding_assets.EmbeddingCollection\n"
            f"attributes:\n  name: {name}\n" + _NEW_COLLECTION.format(name=name)
        )


class CollectionAttributes(RootModel[dict[str, Any]]):
    """The attributes as the file has them: `EmbeddingCollection.load` says what is wrong in them.

    Dagster would let pydantic say it.
    """

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """That of the settings, which editors complete and check."""
        del core_schema
        return handler(CollectionSettings.__pydantic_core_schema__)

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The same, except to `dg check defs` and to what only runs assets.

        The first would look no further than what the schema finds, and that without a suggestion;
        the others make the schema and never look at it.
        """
        command = click.get_current_context(silent=True)
        if command and command.command_path.endswith(_WITHOUT_SCHEMA):
            return {}
        return super().model_json_schema(*args, **kwargs)


@dg.scaffold_with(CollectionScaffolder)
class EmbeddingCollection(dg.Component):
    """A corpus kept as a vector index, by four assets: `documents` to `vector_index`."""

    def __init__(
        self,
        settings: CollectionSettings,
        missing: Sequence[str] = (),
        elsewhere: Sequence[str] = (),
    ) -> None:
        """A collection, which is there also where files are not that its settings name.

        Args:
            settings: its own.
            missing: which files are not there. They may come later: it is a mistake only to
                commands that look for some.
            elsewhere: the same of paths from templates. Where these lead is up to each machine, of
                which this need not be the one.
        """
        self.settings = settings
        self._missing, self._elsewhere = missing, elsewhere

    @classmethod
    def get_model_cls(cls) -> type[CollectionAttributes]:
        return CollectionAttributes

    @classmethod
    def load(
        cls, attributes: BaseModel | None, context: dg.ComponentLoadContext
    ) -> "EmbeddingCollection":
        file = context.resolution_context.source_position_tree
        where = file and file.children.get("attributes", file)
        given = attributes.root if isinstance(attributes, CollectionAttributes) else {}
        check_keys_come_once(where)
        written = read_settings(CollectionSettings, given, where)
        read_environment(context.project_root)  # templates may name what is in .env
        settings = written.rendered(context.resolution_context.resolve_value)
        settings = settings.with_absolute_paths(context.path, context.project_root)
        missing: dict[bool, list[str]] = {False: [], True: []}
        for path, said in missing_files(settings):
            is_template = "{{" in getattr(getattr(written, path[0]), path[1])
            missing[is_template].append(located(said, path, where))
        return cls(settings, missing[False], missing[True])

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        if self._missing and looks_for_mistakes():
            raise YamlMistakeError("\n".join(self._missing))
        for said in (*self._missing, *self._elsewhere):
            _log.warning("%s", said)
        environment = read_environment(context.project_root)
        return dg.Definitions.merge(
            collection_definitions(self.settings, environment),
            dg.Definitions(resources=shared_resources(environment)),
        )


@suppress_dagster_warnings
def collection_definitions(
    settings: CollectionSettings, environment: Environment | None = None
) -> dg.Definitions:
    """The assets and the resources of one collection, and what runs them."""
    # Here, because whoever only searches in a collection needs its settings, and none of these.
    from embedding_assets.automation import automation
    from embedding_assets.deduplicated_chunks.asset import deduplicated_chunks_asset
    from embedding_assets.documents.asset import documents_asset
    from embedding_assets.documents.source_asset import source_asset
    from embedding_assets.embeddings.asset import embeddings_asset
    from embedding_assets.operations.report.asset import report_asset
    from embedding_assets.vector_index.asset import vector_index_asset

    environment = environment or read_environment()
    collection = CollectionAssets(settings)
    resources = collection_resources(settings, environment)
    declared = collection.resources_of(shared_resources(environment) | resources)
    automated = automation(collection)
    return dg.Definitions(
        jobs=automated.jobs,
        schedules=automated.schedules,
        sensors=automated.sensors,
        assets=[
            source_asset(collection, declared),
            documents_asset(collection, declared),
            deduplicated_chunks_asset(collection, declared),
            embeddings_asset(collection, declared),
            vector_index_asset(collection, declared),
            report_asset(collection),
        ],
        resources=resources,
    )
