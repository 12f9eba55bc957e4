"""params.yaml as typed settings.

Unknown keys, wrong types, values out of range and settings that contradict each other are refused here,
in one line each, before anything expensive starts. Nothing heavy is imported.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import networks
from pipeline.networks import AnyNetwork, Network
from pipeline.section import Count, Fraction, Probability, Section, UserError

PARAMS = Path("params.yaml")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]  # a part of stage and folder names, where "-" joins two


class Data(Section):
    """Where the pictures come from and how they are prepared."""

    source: Literal["digits", "image_folder"]
    path: str  # the folder of pictures; `digits` needs none
    image_size: Annotated[int, Field(ge=4, le=1024)]  # height and width in pixels
    validation_fraction: Fraction  # of the training pictures, where the source has no validation split
    test_fraction: Fraction  # of all pictures, where the source has no test split
    split_seed: Annotated[int, Field(ge=0)]
    unreadable: Literal["error", "skip"]  # what to do with pictures that cannot be decoded


class Augmentation(Section):
    """What happens to the pixels of a training picture, in this order."""

    crop_padding: Annotated[int, Field(ge=0)] = 0  # zeros on each side before a random crop of the old size
    horizontal_flip: bool = False
    erase_probability: Probability = 0.0


class Training(Section):
    """A recipe. The batch is the global one: it never depends on the number of workers."""

    epochs: Count
    batch_size: Count
    optimizer: Literal["adamw", "sgd"]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_epochs: Annotated[float, Field(ge=0)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 on GPUs that have it, float32 elsewhere
    augmentation: Augmentation

    @model_validator(mode="after")
    def _warmup_ends(self) -> "Training":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}")
        return self


class Recipes(Section):
    """One recipe for the teachers and one that all students share, so that they are compared fairly."""

    teacher: Training
    student: Training


class Guidance(Section):
    """Locality guidance (Li et al. 2022) and how its weight beta goes over the training."""

    beta: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "linear", "cosine"]
    end_fraction: Annotated[float, Field(gt=0, le=1)] | None = None  # of the epochs, where a decaying beta reaches 0
    student_layers: list[Annotated[int, Field(ge=0)]] | None = None  # null: first, middle and last block

    @model_validator(mode="after")
    def _end_belongs_to_a_decay(self) -> "Guidance":
        if self.schedule == "constant" and self.end_fraction is not None:
            raise ValueError("end_fraction has no effect on the constant schedule; remove it, or choose linear or cosine")
        if self.schedule != "constant" and self.end_fraction is None:
            raise ValueError(f"end_fraction is missing: where, in (0, 1], does the {self.schedule} decay reach zero?")
        return self


class Experiment(Section):
    """Which networks one `dvc repro` trains and compares."""

    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
    teacher: str
    unguided: list[str]
    guided: list[str]  # each student here is trained with each guidance below
    guidance: list[str]


class Cluster(Section):
    """Where a training runs; never what it computes."""

    num_workers: Annotated[int, Field(ge=0)]  # 0: in the process of the stage itself, without Ray
    cpus_per_worker: Count | None = None  # null: all CPUs of this machine, shared out; 1 on a joined cluster
    use_gpu: Literal["auto"] | bool = "auto"
    max_failures: Annotated[int, Field(ge=0)] = 2  # restarts from the last checkpoint after a lost worker
    scratch: str = ".runs"  # unfinished and finished runs, by their identity
    checkpoints: str | None = None  # a folder or URI that all nodes reach; null: in scratch
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 10  # between two checkpoints, which are written after an epoch


class Tracking(Section):
    """Where MLflow keeps the runs; the environment's MLFLOW_TRACKING_URI goes first."""

    enabled: bool
    experiment: str
    folder: str  # the SQLite store and the artifacts beside it


class Settings(Section):
    """All of params.yaml."""

    data: Data
    experiment: Experiment
    teachers: dict[Name, Network]
    students: dict[Name, Network]
    guidance: dict[Name, Guidance]
    training: Recipes
    cluster: Cluster
    tracking: Tracking


def load(*sections: str, path: Path = PARAMS) -> list[Any]:
    """The named sections ("data", "students.vit") of a params file that was checked as a whole.

    Raises UserError, one line a mistake, for anything a person can have written wrongly.
    """
    settings = parse(_read(path), name=path.name)
    return [_section(settings, dotted) for dotted in sections]


def parse(tree: Any, *, name: str = PARAMS.name) -> Settings:
    """Check a tree of plain values; every mistake becomes one line that starts with the file's name."""
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(f"{name}: {_explain(mistake)}" for mistake in error.errors())) from None
    if mistakes := _contradictions(settings):
        raise UserError("\n".join(f"{name}: {mistake}" for mistake in mistakes))
    return settings


def _read(path: Path) -> Any:
    try:
        return YAML(typ="safe").load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the project's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None


def _section(settings: Settings, dotted: str) -> Any:
    found: Any = settings
    for key in dotted.split("."):
        if isinstance(found, dict) and key not in found:
            raise UserError(f"{dotted} is not in {PARAMS}; known: {', '.join(found)}")
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    return found


def _explain(mistake: Any) -> str:
    """One pydantic error in the words of someone who edits params.yaml."""
    location = list(mistake["loc"])
    if location and location[0] in ("students", "teachers") and len(location) > 2:
        del location[2]  # pydantic puts the network's tag there
    where = ".".join(str(part) for part in location) or "the file"
    match mistake["type"]:
        case "extra_forbidden":
            return f"unknown key '{where}'; {_did_you_mean(location)}"
        case "missing":
            return f"'{where}' is missing"
        case "union_tag_invalid":
            return f"{where}.model is '{mistake['ctx']['tag']}'; known models: {mistake['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"'{where}.model' is missing; known models: {', '.join(networks.models())}"
        case _:
            message = mistake["msg"].removeprefix("Value error, ")
            value = mistake["input"]
            given = f" is {value!r}" if not isinstance(value, dict) else ""
            return f"{where}{given}: {message[0].lower()}{message[1:]}"


def _did_you_mean(location: list[Any]) -> str:
    allowed = _allowed_keys(location[:-1])
    near = get_close_matches(str(location[-1]), allowed, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(allowed)}"


def _allowed_keys(location: list[Any]) -> list[str]:
    """The keys that the section at `location` knows."""
    if location and location[0] in ("students", "teachers"):
        return sorted({key for network in networks.models().values() for key in network.model_fields})
    section: Any = Settings
    for part in location:
        if isinstance(part, str) and part in getattr(section, "model_fields", {}):
            section = section.model_fields[part].annotation
        else:
            section = Guidance  # the one dict whose values are sections of a single kind
    return list(section.model_fields)


def _contradictions(settings: Settings) -> list[str]:
    """Mistakes that only show when two settings are held against each other."""
    return [
        *_unknown_names(settings),
        *_repeated_names(settings.experiment),
        *_uneven_batches(settings),
        *(mistake for name, net in settings.students.items() for mistake in _misfits(f"students.{name}", net, settings)),
        *(mistake for name, net in settings.teachers.items() for mistake in _misfits(f"teachers.{name}", net, settings)),
    ]


def _unknown_names(settings: Settings) -> list[str]:
    experiment = settings.experiment
    wanted: list[tuple[str, list[str], dict[str, Any], str]] = [
        ("teacher", [experiment.teacher], settings.teachers, "teachers"),
        ("unguided", experiment.unguided, settings.students, "students"),
        ("guided", experiment.guided, settings.students, "students"),
        ("guidance", experiment.guidance, settings.guidance, "guidance"),
    ]
    return [
        f"experiment.{key} names '{name}', which is not in {section}; known: {', '.join(known) or 'none'}"
        for key, names, known, section in wanted
        for name in names
        if name not in known
    ]


def _repeated_names(experiment: Experiment) -> list[str]:
    lists = {key: getattr(experiment, key) for key in ("seeds", "unguided", "guided", "guidance")}
    return [
        f"experiment.{key} holds an entry twice: {values}" for key, values in lists.items() if len(set(values)) < len(values)
    ]


def _uneven_batches(settings: Settings) -> list[str]:
    workers = max(1, settings.cluster.num_workers)
    recipes = {"teacher": settings.training.teacher, "student": settings.training.student}
    return [
        f"training.{kind}.batch_size {recipe.batch_size} does not divide among cluster.num_workers {workers}; "
        f"{recipe.batch_size // workers * workers or workers} or {(recipe.batch_size // workers + 1) * workers} would"
        for kind, recipe in recipes.items()
        if recipe.batch_size % workers
    ]


def _misfits(where: str, network: AnyNetwork, settings: Settings) -> list[str]:
    size = settings.data.image_size
    return [f"{where}.{mistake}" for mistake in network.misfits(size, size)]
