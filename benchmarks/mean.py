"""A mean over seeds with its interval, printed as pages print it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over seeds with its interval (Student's t); a single seed has none."""

    mean: float
    interval: tuple[float, float] | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Average the values."""
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean=mean, interval=None, count=count)
        half = student.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / count**0.5
        return cls(mean=mean, interval=(float(mean - half), float(mean + half)), count=count)

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ({self.interval[0]:.4f} to {self.interval[1]:.4f})"

    @property
    def signed(self) -> str:
        """The mean and its interval as differences."""
        if self.interval is None:
            return f"{self.mean:+.4f}"
        return f"{self.mean:+.4f} ({self.interval[0]:+.4f} to {self.interval[1]:+.4f})"
