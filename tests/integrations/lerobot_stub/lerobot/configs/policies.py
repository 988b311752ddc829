"""Test double of lerobot.configs.policies: a registry of configurations by name, and its abstract members."""

import abc
from dataclasses import dataclass, field

from lerobot.configs.types import FeatureType


@dataclass
class PreTrainedConfig(abc.ABC):
    n_obs_steps: int = 1
    input_features: dict = field(default_factory=dict)
    output_features: dict = field(default_factory=dict)
    device: str | None = None

    choices = {}  # noqa: RUF012 - of the class, not a field

    def __post_init__(self):
        self.device = self.device or "cpu"

    @classmethod
    def register_subclass(cls, name):
        def register(subclass):
            cls.choices[name] = subclass
            return subclass

        return register

    @property
    def robot_state_feature(self):
        return next((one for one in self.input_features.values() if one.type is FeatureType.STATE), None)

    @property
    def image_features(self):
        return {name: one for name, one in self.input_features.items() if one.type is FeatureType.VISUAL}

    @property
    @abc.abstractmethod
    def observation_delta_indices(self): ...

    @property
    @abc.abstractmethod
    def action_delta_indices(self): ...

    @property
    @abc.abstractmethod
    def reward_delta_indices(self): ...

    @abc.abstractmethod
    def get_optimizer_preset(self): ...

    @abc.abstractmethod
    def get_scheduler_preset(self): ...

    @abc.abstractmethod
    def validate_features(self): ...
