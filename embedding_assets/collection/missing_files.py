"""Local files that a collection's settings name and that are not there; no folder is listed."""

from collections.abc import Iterator
from pathlib import Path

from embedding_assets.collection.settings import CollectionSettings, unset_variables
from resources.document_sources.dated_paths import fixed_folder, generalise, is_there
from resources.embedders.local_model.model_files import is_folder_name
from resources.embedders.local_settings import LocalSettings
from resources.embedders.openai.settings import OpenAISettings


def missing_files(settings: CollectionSettings) -> Iterator[tuple[tuple[str, str], str]]:
    """The settings that name local files or folders that are not there, each with a sentence.

    Args:
        settings: with absolute paths.
    """
    for (part, name), path in _named(settings):
        if unset := unset_variables(path):
            said = f"the environment variable {' and '.join(unset)} is not set"
            yield (part, name), f"{part}.{name}: {said}; it may stand in the project's .env."
            continue
        if "://" in path or is_there(path):
            continue
        is_pattern = any(sign in generalise(path) for sign in "*?[")
        folder = fixed_folder(path) if is_pattern else path
        if not (is_pattern and is_there(folder)):
            yield (part, name), f"{part}.{name}: there is nothing at {folder}."


def _named(settings: CollectionSettings) -> Iterator[tuple[tuple[str, str], str]]:
    yield ("source", "path"), settings.source.path
    if settings.evaluation:
        yield ("evaluation", "queries"), settings.evaluation.queries
        yield ("evaluation", "qrels"), settings.evaluation.qrels
    for part in ("embedder", "fallback"):
        embedder = getattr(settings, part)
        if isinstance(embedder, LocalSettings) and is_folder_name(embedder.model):
            yield (part, "model"), str(Path(embedder.model).expanduser().absolute())
        if isinstance(embedder, OpenAISettings) and embedder.tokenizer:
            yield (part, "tokenizer"), embedder.tokenizer
