"""What a search varies and how far it goes: the `search` section of params.yaml. Nothing heavy is imported."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.durations import Length
from pipeline.section import Count, Positive, Probability, Section

Values = Annotated[list[Any], Field(min_length=1)]
Numbers = Annotated[list[float], Field(min_length=2, max_length=2)]
Integers = Annotated[list[int], Field(min_length=2, max_length=2)]


class Domain(Section):
    """The values that a search may give to one setting: exactly one of these."""

    choice: Values | None = None  # one is drawn
    grid: Values | None = None  # each is tried with each of the other grids
    uniform: Numbers | None = None  # lowest and highest
    loguniform: Numbers | None = None  # the same, with every order of magnitude equally likely
    randint: Integers | None = None  # lowest and highest, both included

    @property
    def kind(self) -> str:
        """Which of them it is."""
        return next(iter(self.model_dump(exclude_none=True)))

    @property
    def values(self) -> list[Any]:
        """All values of a choice or a grid, the two ends of a range."""
        return getattr(self, self.kind)

    @property
    def is_range(self) -> bool:
        return self.kind in ("uniform", "loguniform", "randint")

    def holds(self, value: Any) -> bool:
        """Whether the search can come upon this value."""
        if not self.is_range:
            return value in self.values
        return isinstance(value, int | float) and self.values[0] <= value <= self.values[1]

    @model_validator(mode="after")
    def _is_one(self) -> "Domain":
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        low, high = self.values[0], self.values[-1]
        if self.is_range and low >= high:
            raise ValueError(f"{self.kind} goes from {low:g} to {high:g}; the first must be less")
        if self.kind == "loguniform" and low <= 0:
            raise ValueError(f"loguniform begins at {low:g}; it must be greater than 0")
        return self


class Budget(Section):
    """When no new trial is begun, by what is reached first; those that run are finished."""

    trials: Annotated[int, Field(ge=0)]  # 0: no search
    images: Count | None = None  # trained on, over all trials
    minutes: Positive | None = None


class Search(Section):
    """A search for better settings of one student, judged on the validation pictures."""

    student: str
    guidance: str | None = None  # the guidance it is trained with; null: alone
    space: dict[str, Domain] = {}  # a setting by its dotted name -> its values
    searcher: Literal["grid", "random", "optuna"] = "optuna"  # that is TPE
    scheduler: Literal["none", "asha", "median"] = "asha"  # which trials are stopped early
    objective: Literal["val_accuracy", "val_loss"] = "val_accuracy"  # after a trial's last epoch
    budget: Budget
    duration: Length | None = None  # of a trial; null: what the recipe says
    grace_epochs: Count = 1  # that every trial is given
    reduction_factor: Annotated[int, Field(ge=2)] = 3  # asha: the best 1 in so many go on
    points: list[dict[str, Any]] | None = None  # tried first, the rest of each as it is now; null: what is set now
    finalists: Annotated[int, Field(ge=0)] = 0  # so many of the best are trained with all of experiment.seeds
    quorum: Probability = 0.5  # the search fails where fewer of its trials succeed
    seed: Annotated[int, Field(ge=0)] = 0  # of what is drawn

    @property
    def sections(self) -> list[str]:
        """The sections whose settings it can vary: of the student, the recipe and, where there is one, the guidance."""
        return [f"students.{self.student}", "training.student", *([f"guidance.{self.guidance}"] if self.guidance else [])]

    @property
    def sign(self) -> int:
        """1 where more of the objective is better, -1 where less is."""
        return 1 if self.objective == "val_accuracy" else -1

    @model_validator(mode="after")
    def _varies_something(self) -> "Search":
        if self.budget.trials and not self.space:
            raise ValueError("space is empty; name a setting, or set budget.trials to 0 for no search")
        return self

    @model_validator(mode="after")
    def _grids_go_together(self) -> "Search":
        for name, domain in self.space.items():
            if self.searcher == "grid" and domain.kind != "grid":
                raise ValueError(f"searcher grid visits grids; '{name}' is a {domain.kind}: choose random or optuna")
            if self.searcher != "grid" and domain.kind == "grid":
                raise ValueError(f"searcher {self.searcher} draws; '{name}' is a grid: write choice, or choose grid")
        if self.searcher == "grid" and self.points is not None:
            raise ValueError("points have no effect on searcher grid, which tries them all; remove them")
        return self

    @model_validator(mode="after")
    def _points_lie_in_the_space(self) -> "Search":
        for point in self.points or []:
            for name, value in point.items():
                if name not in self.space:
                    raise ValueError(f"points: '{name}' is not in the space; known: {', '.join(self.space)}")
                if not self.space[name].holds(value):
                    domain = self.space[name]
                    raise ValueError(f"points: '{name}' is {value!r}, outside of {domain.kind} {domain.values}")
        return self
