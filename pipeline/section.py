"""What all settings are made of. Nothing heavy is imported."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class UserError(ValueError):
    """Something a person can put right; its text is the one line that they read."""


class Section(BaseModel):
    """Settings that refuse keys they do not know, and are never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
