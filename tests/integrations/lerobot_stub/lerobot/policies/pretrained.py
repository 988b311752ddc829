"""Test double of lerobot.policies.pretrained."""

import abc

from torch import nn

from lerobot.configs.policies import PreTrainedConfig


class PreTrainedPolicy(nn.Module, abc.ABC):
    config_class = None
    name = None

    def __init__(self, config):
        super().__init__()
        assert isinstance(config, PreTrainedConfig)
        self.config = config

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if not cls.config_class or not cls.name:
            raise TypeError(f"{cls.__name__} must define config_class and name")

    @abc.abstractmethod
    def get_optim_params(self): ...

    @abc.abstractmethod
    def reset(self): ...

    @abc.abstractmethod
    def forward(self, batch): ...

    @abc.abstractmethod
    def predict_action_chunk(self, batch, **options): ...

    @abc.abstractmethod
    def select_action(self, batch, **options): ...
