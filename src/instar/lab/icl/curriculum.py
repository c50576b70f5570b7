"""Tasks that grow while a model learns them: few features and examples first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from instar.errors import ShapeError


@dataclass(frozen=True)
class Curriculum:
    """A quarter of the features at first, one more each `every` steps, and as large a share of the examples, two at least.

    Args: width: D. examples: N. every: training steps a stage; 0 is all from the beginning.

    The ends of Garg et al. 2022 (arXiv 2208.01066) are 5 of 20 features and 11 of 41 examples. Raises ShapeError.
    """

    width: int
    examples: int
    every: int = 0

    def __post_init__(self) -> None:
        if self.width < 1 or self.examples < 1 or self.every < 0:
            raise ShapeError(
                f"A curriculum expects width and examples ≥ 1, and 0 or more steps a stage; received {self.width}, "
                f"{self.examples} and {self.every}."
            )

    def sizes(self, step: int) -> tuple[int, int]:
        """Features and examples of the training step `step`, from 0."""
        if not self.every:
            return self.width, self.examples
        features = min(self.width, math.ceil(self.width / 4) + step // self.every)
        return features, min(self.examples, max(2, math.ceil(self.examples * features / self.width)))
