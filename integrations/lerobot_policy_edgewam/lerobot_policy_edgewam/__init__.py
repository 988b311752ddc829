"""Runs an edgewam bundle as a LeRobot policy.  LeRobot imports this package by its name, which registers the configuration."""

from lerobot_policy_edgewam.configuration_edgewam import EdgewamConfig

__all__ = ["EdgewamConfig"]
