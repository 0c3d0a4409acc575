"""The errors recut raises by name: each says what is wrong, where, and what to do about it."""

from __future__ import annotations


class RecutError(Exception):
    """Base of every error that recut raises on purpose."""


class SettingError(RecutError, ValueError):
    """A setting that cannot be read.

    Attributes:
        setting: the option key or environment variable the value came from.
        value: the value as it was given.
        problem: what is wrong with it.
        remedy: what was probably meant, or the accepted forms.
    """

    def __init__(self, setting: str, value: object, problem: str, remedy: str) -> None:
        # All four reach `args`, so the error survives a trip through pickle.
        super().__init__(setting, value, problem, remedy)
        self.setting = setting
        self.value = value
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.setting}={self.value!r}: {self.problem}; {self.remedy}"


class TraceError(RecutError):
    """A model that gives no training graph to plan.

    Attributes:
        model: what the model is called.
        problem: what is wrong with it, and where.
        remedy: what to do about it.
    """

    def __init__(self, model: str, problem: str, remedy: str) -> None:
        super().__init__(model, problem, remedy)
        self.model = model
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.model} cannot be planned: {self.problem}; {self.remedy}"
