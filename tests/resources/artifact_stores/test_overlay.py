"""A store laid over another one."""

import pytest

from resources.artifact_stores.base import ArtifactNotFoundError
from resources.artifact_stores.files import FileArtifactStore
from resources.artifact_stores.overlay import OverlayArtifactStore
from tests.support.artifacts import KEY, read, write


def test_an_overlay_shows_what_lies_below_and_never_changes_it(tmp_path):
    store = FileArtifactStore(url=str(tmp_path / "below"))
    above = FileArtifactStore(url=str(tmp_path / "above"))
    overlay = OverlayArtifactStore(below=store, above=above)
    other = "peps/documents/2021/documents.parquet"
    write(store, b"below")
    write(store, b"other", other)
    assert read(overlay) == b"below"
    write(overlay, b"above")
    overlay.remove(other)
    assert read(overlay) == b"above"
    assert overlay.list_keys("peps/") == [KEY]
    with pytest.raises(ArtifactNotFoundError):
        read(overlay, other)
    write(overlay, b"again", other)
    assert read(overlay, other) == b"again"
    overlay.remove(KEY)
    assert not overlay.exists(KEY)
    assert (read(store), read(store, other)) == (b"below", b"other")
