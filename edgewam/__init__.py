"""edgewam shrinks a trained robot world-action model until it runs on the robot, and runs it there."""

__version__ = "0.1.0"
__all__ = ["__version__"]
