"""Test double of lerobot.configs.types."""

from dataclasses import dataclass
from enum import StrEnum


class FeatureType(StrEnum):
    STATE = "STATE"
    VISUAL = "VISUAL"
    ACTION = "ACTION"


class NormalizationMode(StrEnum):
    IDENTITY = "IDENTITY"


@dataclass
class PolicyFeature:
    type: FeatureType
    shape: tuple
