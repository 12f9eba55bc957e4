"""params.yaml as typed settings.

Unknown keys, wrong types, values out of range and settings that contradict each other are refused here,
in one line each, before anything expensive starts. Nothing heavy is imported.
"""

from copy import deepcopy
from difflib import get_close_matches
from functools import reduce
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import networks
from pipeline.durations import Interval, Length, Part, PartOrZero, reaches
from pipeline.networks import AnyNetwork, Network, Resnet, Vit  # noqa: F401 (also known here)
from pipeline.section import Count, Fraction, Positive, Probability, Section, UserError
from pipeline.space import Search

PARAMS = Path("params.yaml")
DOWNLOADS = ("cifar10", "cifar100", "svhn", "flowers102")  # sources that torchvision knows how to fetch

Policy = Literal["none", "autoaugment_cifar10", "autoaugment_svhn", "autoaugment_imagenet", "randaugment", "trivialaugment"]
POLICIES = get_args(Policy)
SourceName = Literal[
    "digits",
    "image_folder",
    "parquet",
    "csv",
    "cifar10",
    "cifar100",
    "svhn",
    "tiny_imagenet",
    "intel",
    "chaoyang",
    "flowers102",
    "imagenet",
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]  # a part of stage and folder names, where "-" joins two


class Data(Section):
    """Where the pictures come from and how they are prepared."""

    source: SourceName
    path: str  # the folder or archive of pictures; `digits` needs none
    download: bool = False  # fetch what is not there yet into path, where torchvision knows how
    image_column: str | None = None  # of parquet and csv; null: the one that fits
    label_column: str | None = None
    image_size: Annotated[int, Field(ge=4, le=1024)] | None  # height and width in pixels; null: as they are, resized per batch
    validation_fraction: Fraction  # of the training pictures, where the source has no validation split
    test_fraction: Fraction  # of all pictures, where the source has no test split
    split_seed: Annotated[int, Field(ge=0)]
    unreadable: Literal["error", "skip"]  # what to do with pictures that cannot be decoded
    duplicates: Literal["warn", "drop", "error"] = "warn"  # what to do with pictures of the same content
    train_fraction: Annotated[float, Field(gt=0, le=1)] | None = None  # of the training pictures, after the splits are cut
    train_per_class: Count | None = None  # training pictures of each class, after the splits are cut

    @model_validator(mode="after")
    def _download_is_known(self) -> "Data":
        if self.download and self.source not in DOWNLOADS:
            raise ValueError(f"download is known for {', '.join(DOWNLOADS)}, not for {self.source}; fetch it by hand")
        return self

    @model_validator(mode="after")
    def _one_low_data_rule(self) -> "Data":
        if self.train_fraction is not None and self.train_per_class is not None:
            raise ValueError("train_fraction and train_per_class are two ways to say one thing; set one of them to null")
        return self


class RandAugment(Section):
    """RandAugment (Cubuk et al. 2020) in timm's form; the defaults are its "rand-m9-mstd0.5-inc1"."""

    magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    magnitude_std: Annotated[float, Field(ge=0)] = 0.5  # of normal noise on the magnitude
    operations: Count = 2  # drawn for a picture, one after the other
    probability: Probability = 0.5  # with which a drawn operation is done


class Augmentation(Section):
    """What happens to the pixels of a training picture, in this order, and to pairs of pictures in the end."""

    random_resized_crop: Annotated[float, Field(gt=0, le=1)] | None = None  # least area of the part, of the picture's
    crop_padding: Annotated[int, Field(ge=0)] = 0  # zeros on each side before a random crop of the old size
    horizontal_flip: bool = False
    policy: Policy = "none"
    randaugment: RandAugment = RandAugment()  # where it is the policy
    erase_probability: Probability = 0.0
    erase_mode: Literal["const", "rand", "pixel"] = "const"  # the data's mean, a random colour, or one for each pixel
    mixup_alpha: Annotated[float, Field(ge=0)] = 0.0
    cutmix_alpha: Annotated[float, Field(ge=0)] = 0.0
    mix_probability: Probability = 1.0  # of a batch, where one of the alphas is given
    switch_probability: Probability = 0.5  # of cutmix, where both are given
    repeats: Count = 1  # how often a picture is in a batch, each time augmented anew (Hoffer et al. 2020)

    @property
    def mixes(self) -> bool:
        """Whether labels are mixed, and so become probabilities."""
        return bool(self.mix_probability and (self.mixup_alpha or self.cutmix_alpha))


class Training(Section):
    """A recipe. The batch is the global one: it never depends on the number of workers."""

    duration: Length  # in epochs, steps or images, each picture counted as often as it is shown
    passes_per_epoch: Count = 1  # over all pictures: 3 is what Lee et al. call an epoch with "repeated augmentation"
    batch_size: Count
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None  # pixels, of the batches; null: as the pictures are stored
    optimizer: Literal["adamw", "sgd", "lion", "muon"]
    sharpness_radius: Positive | None = None  # sharpness-aware minimisation (Foret et al. 2021) around any optimizer
    learning_rate: Positive  # the peak
    reference_batch_size: Count | None = None  # the one that learning_rate is for; it is scaled to batch_size by their ratio
    schedule: Literal["cosine", "linear", "constant", "step"] = "cosine"  # step: a tenth from 1/2, a hundredth from 3/4 on
    floor_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the peak, where the schedule ends
    warmup: PartOrZero
    weight_decay: Annotated[float, Field(ge=0)]
    decay_all: bool = False  # norms, biases, tokens and positions too
    gradient_clip: Positive | None = None  # the largest norm of the gradient
    accumulate: Count = 1  # parts in which a worker's share of a batch is worked on, one after the other
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # per step, of an average of the weights
    result: Literal["last", "ema", "best", "best_ema"] = "last"  # the weights that are kept; best by validation accuracy
    refit: bool = False  # then train anew on train and validation, to the epoch of the result
    patience: Part | None = None  # stop after so long without a better validation accuracy
    precision: Literal["auto", "float32", "bfloat16", "float16"]  # auto: bfloat16 on GPUs that have it, float32 elsewhere
    compile: bool = False  # by torch.compile
    augmentation: Augmentation

    @model_validator(mode="after")
    def _warmup_ends(self) -> "Training":
        if reaches(self.warmup, self.duration):
            raise ValueError(f"warmup '{self.warmup}' must be less than duration '{self.duration}'")
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> "Training":
        if "ema" in self.result and self.ema_decay is None:
            raise ValueError(f"result {self.result} needs ema_decay; set it, say to 0.99, or choose last or best")
        if self.sharpness_radius and self.precision == "float16":
            raise ValueError("sharpness_radius does not go with precision float16; bfloat16 and float32 do")
        return self

    @model_validator(mode="after")
    def _repeats_fill_a_batch(self) -> "Training":
        repeats = self.augmentation.repeats
        if self.batch_size % repeats:
            near = nearest_multiples(self.batch_size, repeats)
            raise ValueError(
                f"batch_size {self.batch_size} does not hold each picture augmentation.repeats {repeats} times; {near} would"
            )
        return self


class Recipes(Section):
    """One recipe for the teachers and one that all students share, so that they are compared fairly."""

    teacher: Training
    student: Training

    @model_validator(mode="after")
    def _teachers_do_not_see_validation(self) -> "Recipes":
        if self.teacher.refit:
            raise ValueError(
                "a teacher with refit has seen the validation pictures, on which its students are judged; remove it"
            )
        return self


class Guidance(Section):
    """Locality guidance (Li et al. 2022) and how its weight beta goes over the training."""

    beta: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "linear", "cosine", "step", "adaptive"]  # step: whole up to `end`, then gone
    end: Part | None = None  # when beta reaches 0; the teacher is let go after that epoch
    window: Part = "16.67 %"  # adaptive: over which the loss is smoothed, twice, in whole epochs
    stop_slope: float = -6.0  # adaptive: of the smoothed loss, in its change over a whole training; flatter ends guidance
    loss: Literal["mse", "cosine", "attention"] = "mse"
    normalise: bool = False  # maps to zero mean and unit variance, picture by picture and channel by channel, before the loss
    projection_kernel: Literal[1, 3] = 1  # of the convolutions that bring the student's channels to the teacher's
    student_layers: list[Annotated[int, Field(ge=0)]] | None = None  # null: those of the papers
    teacher_layers: list[Annotated[int, Field(ge=0)]] | None = None
    offline: bool = False  # by the teacher's maps of the pictures as they are, stored once, cropped and flipped with them
    distillation: Literal["none", "soft", "hard"] = "none"  # from the teacher's answers, to the end (Touvron et al. 2021)
    distillation_weight: Probability = 0.5  # of this loss; the labels' has the rest
    temperature: Positive = 3.0  # soft: of both answers

    @model_validator(mode="after")
    def _details_have_distillation(self) -> "Guidance":
        wanted = {"distillation_weight": ("soft", "hard"), "temperature": ("soft",)}
        for key, kinds in wanted.items():
            if self.distillation not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with distillation {self.distillation}; set it to {' or '.join(kinds)}")
        return self

    @model_validator(mode="after")
    def _answers_need_the_teacher(self) -> "Guidance":
        if self.offline and self.distillation != "none":
            raise ValueError("offline stores the teacher's maps, not its answers; set offline: false or distillation: none")
        return self

    @model_validator(mode="after")
    def _end_belongs_to_a_decay(self) -> "Guidance":
        if self.schedule in ("constant", "adaptive"):
            if self.end is not None:
                raise ValueError(f"end has no effect on schedule {self.schedule}; remove it, or choose cosine")
        elif self.end is None:
            raise ValueError(f"end is missing: when does schedule {self.schedule} reach zero? say '34 %' or '10 epochs'")
        return self


class Evaluation(Section):
    """What is measured of a trained network beside its accuracy and cost."""

    corrupted_pictures: Annotated[int, Field(ge=0)] = 100  # of the test split, made worse in 4 x 5 ways; 0: not measured


class Published(Section):
    """A paper's own numbers, which the report shows beside ours."""

    source: str  # the paper and its table
    differs: str  # in what this recipe is another than the paper's
    accuracy: dict[SourceName, dict[str, Annotated[float, Field(ge=0, le=100)]]]  # by network, as the report names it, in %

    def on(self, source: str) -> dict[str, float]:
        """The accuracies on one source of pictures."""
        return next((found for name, found in self.accuracy.items() if name == source), {})


class Experiment(Section):
    """Which networks one `dvc repro` trains and compares."""

    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
    teacher: str
    unguided: list[str]
    guided: list[str]  # each student here is trained with each guidance below
    guidance: list[str]
    published: list[Published] = []  # where the recipe is a paper's


class Cluster(Section):
    """Where a training runs; never what it computes."""

    num_workers: Annotated[int, Field(ge=0)]  # 0: in the process of the stage itself, without Ray
    min_workers: Count | None = None  # elastic: goes on with so few where there are no more; null: num_workers
    cpus_per_worker: Count | None = None  # null: chosen from what there is (pipeline/scheduling.py)
    use_gpu: Literal["auto"] | bool = "auto"
    gpus_per_worker: Positive | None = None  # a part of one, for small networks: 0.25; null: 1
    placement: Literal["pack", "spread"] = "pack"  # workers on as few nodes as they fit on, or on as many as there are
    data: Literal["auto", "resident", "streaming"] = "auto"  # all training pictures on the device, where they fit, or not
    max_failures: Annotated[int, Field(ge=0)] = 2  # restarts from the last checkpoint after a lost worker
    scratch: str = ".runs"  # unfinished and finished runs, by their identity
    checkpoints: str | None = None  # a folder or URI that all nodes reach; null: in scratch
    checkpoint_interval: Interval = "10 seconds"  # at least, between two checkpoints, which are written after an epoch

    @model_validator(mode="after")
    def _elastic_range(self) -> "Cluster":
        if self.min_workers and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers {self.min_workers} is above num_workers {self.num_workers}")
        return self

    @model_validator(mode="after")
    def _whole_gpus(self) -> "Cluster":
        gpus = self.gpus_per_worker or 1
        if gpus > 1 and gpus % 1:
            raise ValueError(f"gpus_per_worker {gpus:g} is neither a part of one GPU nor a whole number of them")
        if gpus < 1 and self.num_workers > 1:
            raise ValueError(
                f"gpus_per_worker {gpus:g} needs num_workers 1: the workers of one training each need their own GPU"
            )
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> "Cluster":
        if self.checkpoints and urlsplit(self.checkpoints).password:
            raise ValueError(
                "checkpoints holds a password before its @, and params.yaml is no place for one; "
                "give each node AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
            )
        return self

    @property
    def sizes(self) -> range:
        """The numbers of workers that a training may have."""
        most = max(1, self.num_workers)
        return range(self.min_workers or most, most + 1)


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
    evaluation: Evaluation = Evaluation()
    search: Search
    cluster: Cluster
    tracking: Tracking


def load(*sections: str, path: Path = PARAMS) -> list[Any]:
    """The named sections ("data", "students.vit") of a params file that was checked as a whole.

    Raises UserError, one line a mistake, for anything a person can have written wrongly.
    """
    settings = parse(_read(path), name=path.name)
    return [section(settings, dotted) for dotted in sections]


def tree(path: Path = PARAMS) -> dict[str, Any]:
    """All of a params file, checked, as plain values."""
    return parse(_read(path), name=path.name).model_dump()


def replaced(tree: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy of the tree in which the settings with these dotted names have these values."""
    changed = deepcopy(tree)
    for dotted, value in values.items():
        *sections, key = dotted.split(".")
        reduce(lambda found, name: found.setdefault(name, {}), sections, changed)[key] = value
    return changed


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


def section(settings: Settings, dotted: str) -> Any:
    """The part of the settings that has this dotted name."""
    found: Any = settings
    for key in dotted.split("."):
        if isinstance(found, dict) and key not in found:
            raise UserError(f"{dotted} is not in {PARAMS}; known: {', '.join(found)}")
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    return found


def _explain(mistake: Any) -> str:
    """One pydantic error in the words of someone who edits params.yaml."""
    location = _location(mistake)
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


def _location(mistake: Any) -> list[Any]:
    location = list(mistake["loc"])
    if location and location[0] in ("students", "teachers") and len(location) > 2:
        del location[2]  # pydantic puts the network's tag there
    return location


def _did_you_mean(location: list[Any]) -> str:
    allowed = _allowed_keys(location[:-1])
    near = get_close_matches(str(location[-1]), allowed, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(allowed)}"


def _allowed_keys(location: list[Any]) -> list[str]:
    """The keys that the section at `location` knows."""
    if location and location[0] in ("students", "teachers"):
        return sorted({key for network in networks.models().values() for key in network.model_fields})
    found: Any = Settings
    for part in location:
        is_section = isinstance(part, str) and part in getattr(found, "model_fields", {})
        found = found.model_fields[part].annotation if is_section else get_args(found)[-1]  # the section in a dict or list
    return list(found.model_fields)


def _contradictions(settings: Settings) -> list[str]:
    """Mistakes that only show when two settings are held against each other."""
    return [
        *_unknown_names(settings),
        *_unknown_published(settings),
        *_repeated_names(settings.experiment),
        *_uneven_batches(settings),
        *_unknown_sizes(settings),
        *_search_mistakes(settings),
        *_offline_mistakes(settings),
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


def _unknown_published(settings: Settings) -> list[str]:
    guided = [f"{student}-{guidance}" for student in settings.students for guidance in settings.guidance]
    names = {"teacher": [*settings.teachers], "unguided": [*settings.students], "guided": guided}
    known = [f"{kind}/{name}" for kind, named in names.items() for name in named]
    return [
        f"experiment.published.{place}.accuracy.{source} names '{network}', which is no network here; known: {', '.join(known)}"
        for place, paper in enumerate(settings.experiment.published)
        for source, accuracies in paper.accuracy.items()
        for network in accuracies
        if network not in known
    ]


def _repeated_names(experiment: Experiment) -> list[str]:
    lists = {key: getattr(experiment, key) for key in ("seeds", "unguided", "guided", "guidance")}
    return [
        f"experiment.{key} holds an entry twice: {values}" for key, values in lists.items() if len(set(values)) < len(values)
    ]


def _uneven_batches(settings: Settings) -> list[str]:
    mistakes = []
    sizes = settings.cluster.sizes
    workers = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
    for kind, recipe in {"teacher": settings.training.teacher, "student": settings.training.student}.items():
        shares = lcm(*sizes) * (2 if recipe.augmentation.mixes else 1)
        if recipe.batch_size % shares:
            pairs = ", in the pairs that are mixed," if recipe.augmentation.mixes else ""
            mistakes.append(
                f"training.{kind}.batch_size {recipe.batch_size} does not divide{pairs} among cluster.num_workers {workers}; "
                f"{nearest_multiples(recipe.batch_size, shares)} would"
            )
    return mistakes


def _unknown_sizes(settings: Settings) -> list[str]:
    recipes = {"teacher": settings.training.teacher, "student": settings.training.student}
    return [
        f"training.{kind}.image_size is missing: data.image_size is null, so pictures are resized batch by batch; to what?"
        for kind, recipe in recipes.items()
        if not (recipe.image_size or settings.data.image_size)
    ]


def _offline_mistakes(settings: Settings) -> list[str]:
    """What goes beyond crops and flips of the prepared training pictures, where maps of these are stored."""
    experiment, recipe = settings.experiment, settings.training.student
    offline = {name for name, guidance in settings.guidance.items() if guidance.offline}
    reasons = {
        f"training.student.augmentation.policy {recipe.augmentation.policy}": recipe.augmentation.policy != "none",
        "a training.student.augmentation that mixes pictures": recipe.augmentation.mixes,
        "training.student.refit": recipe.refit,
        "data.image_size null": settings.data.image_size is None,
    }
    if settings.search.guidance in offline:
        return [f"search.guidance is '{settings.search.guidance}', which is offline; a search needs the teacher itself"]
    return [
        f"guidance.{name}.offline does not go with {reason}; set it to false, or change that"
        for name in experiment.guidance
        if name in offline
        for reason, holds in reasons.items()
        if holds
    ]


def _misfits(where: str, network: AnyNetwork, settings: Settings) -> list[str]:
    recipe = settings.training.student if where.startswith("students") else settings.training.teacher
    key = f"training.{where.split('.')[0].removesuffix('s')}.image_size" if recipe.image_size else "data.image_size"
    size = recipe.image_size or settings.data.image_size
    return [f"{where}.{mistake.replace('data.image_size', key)}" for mistake in network.misfits(size, size)] if size else []


def nearest_multiples(number: int, unit: int) -> str:
    """The multiples of `unit` next to `number`, which is none, for an error message: "60 or 65"."""
    return " or ".join(str(multiple) for multiple in (number // unit * unit, (number // unit + 1) * unit) if multiple)


def _search_mistakes(settings: Settings) -> list[str]:
    search = settings.search
    if search.student not in settings.students:
        return [f"search.student is '{search.student}', which is not in students; known: {', '.join(settings.students)}"]
    if search.guidance is not None and search.guidance not in settings.guidance:
        return [f"search.guidance is '{search.guidance}', which is not in guidance; known: {', '.join(settings.guidance)}"]
    mistakes = [mistake for name in search.space for mistake in _dimension_mistakes(name, settings)]
    if search.finalists and len(settings.experiment.seeds) == 1:
        mistakes.append(f"search.finalists {search.finalists} have no effect with one seed; give experiment.seeds more")
    return mistakes


def _dimension_mistakes(dotted: str, settings: Settings) -> list[str]:
    """What is wrong with a setting in the search space, whatever the others are."""
    search = settings.search
    if not any(dotted.startswith(f"{section}.") for section in search.sections):
        return [f"search.space holds '{dotted}'; the settings of this search begin with {' or '.join(search.sections)}"]
    for value in search.space[dotted].values:
        try:
            Settings.model_validate(replaced(settings.model_dump(), {dotted: value}))
        except ValidationError as error:
            if own := [each for each in error.errors() if f"{'.'.join(map(str, _location(each)))}.".startswith(f"{dotted}.")]:
                return [f"search.space: {_explain(own[0])}"]
    return []
