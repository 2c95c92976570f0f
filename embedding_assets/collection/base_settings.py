"""What all settings of a collection have in common."""

import dagster as dg
from pydantic import ConfigDict


class Settings(dg.Model):
    """Frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True)
