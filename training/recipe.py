"""The recipe: the model's description, its method and how it is trained, as one typed, frozen value."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from index.kinds.flat import FlatSpec
from index.spec import AnyIndexSpec, changed
from modeling.backbone.adapters import adapter_of
from modeling.spec import ModelSpec, Section
from training.effects import ALWAYS, EFFECTS, LEARNED, Effect
from training.older_recipes import MOVED, upgraded

METHODS = "training.methods"
"""Package of the training methods, which stands above this module: it is reached by name."""


class RecipeError(ValueError):
    """A recipe or one of its settings does not exist, or has a value that is not allowed."""


class OptimizerSpec(Section):
    """AdamW. ``backbone_rate`` is for pretrained weights and their adapter, ``rate`` for everything else."""

    rate: float = Field(1e-3, gt=0)
    backbone_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the steps in which the rate rises linearly")
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    epochs: int = Field(60, ge=0, description="maximum epochs; 0: zero-shot, nothing is trained")
    patience: int = Field(8, ge=1, description="evaluations without a better validation NDCG@10 before it stops")
    positions: int = Field(1280, ge=1, description="approximate number of target items in a global batch")
    clip: float = Field(5.0, gt=0, description="maximum norm of the gradient")
    user_windows: int | None = Field(
        None, ge=1, description="maximum targets of a user in an epoch, drawn in each epoch; None: all. Only for "
        "methods in which every target needs a pass of its own",
    )  # fmt: skip
    average_epochs: float = Field(
        0.0, ge=0, description="length of the running average of the weights, in epochs; 0: no averaging"
    )


class CodesSpec(Section):
    """Semantic IDs of items: ``levels`` codes of ``size`` values each, and one more code that distinguishes equal ones.

    Semantic IDs: ``rq-vae``, a residual quantiser inside an autoencoder (Rajput et al. 2023); ``residual-kmeans``,
    residual k-means on the vectors of the titles and, with ``collaborative``, of the co-occurrence of items in
    histories (`training.data.cooccurrence`; LETTER, Wang et al. 2024, has the same aim but trains the quantiser
    towards a recommender's vectors); ``semantic``, up to ``levels`` categories of an item and its number among items
    with the same ones, or residual k-means if the data has no categories.

    Identifiers of P5 and OpenP5 (Hua et al. 2023), from the training part only: ``random`` and ``sequential`` are item
    numbers (random, or in order of first appearance) in digit groups of ``size`` values, regardless of ``levels``;
    ``collaborative`` is the path in a tree with ``clusters`` children per node, at most ``levels`` deep, to a leaf of
    ``size`` items, and the number in the leaf.
    """

    kind: Literal["rq-vae", "residual-kmeans", "random", "sequential", "collaborative", "semantic"] = "rq-vae"
    levels: int = Field(3, ge=1)
    size: int = Field(256, ge=2)
    clusters: int = Field(20, ge=2, description="children of a tree node, collaborative only")
    dim: int = Field(32, ge=2, description="width of the quantised vectors, rq-vae only")
    collaborative: float = Field(
        0.0, ge=0, lt=1, description="weight of co-occurrence in the vectors of items, relative to titles; 0.5: equal; "
        "kinds made from vectors only",
    )  # fmt: skip
    commitment: float = Field(0.25, ge=0, description="beta of the commitment loss, rq-vae only")
    epochs: int = Field(300, ge=1, description="passes over the catalog, rq-vae only")


class MethodSettings(Section):
    """Settings of one kind of method; every kind has its own class, in ``training/methods/<kind>.py``.

    Attributes:
        kind: name of the method, a module of `training.methods` and of `modeling.methods`.
        encodes: whether a user encoder and an item tower are trained.
        instructed: whether ``history.instruction`` begins every prompt.
        builds_on: whether an artifact of the recipe ``requires`` can be built on.
        trains_beside: whether something beside the backbone is trained, at ``optimizer.rate``.
        learns: whether a network is trained by steps; without one, only the settings of the method itself are read.
    """

    kind: str
    encodes: ClassVar[bool] = False
    instructed: ClassVar[bool] = False
    builds_on: ClassVar[bool] = False
    trains_beside: ClassVar[bool] = False
    learns: ClassVar[bool] = True

    @property
    def needs_teacher(self) -> bool:
        """Whether lists that another artifact gave are learned from."""
        return False

    @classmethod
    def effects(cls) -> Mapping[str, Effect]:
        """When a setting of this section is read, by its path inside the section; one without an entry always is."""
        return {}

    @property
    def codes_spec(self) -> CodesSpec | None:
        """Settings of the items' codes; None for a method without codes."""
        return None

    def check(self, recipe: Recipe) -> None:
        """Check that the recipe's sections fit the method; raises ``ValueError``."""

    def check_untrained(self, recipe: Recipe) -> None:
        """Whether the model can be asked without any training; raises ``ValueError``."""
        raise ValueError(f"optimizer.epochs=0 trains nothing, and method {self.kind!r} would answer at random")

    def reads_titles(self, recipe: Recipe) -> bool:
        """Whether the titles of the catalog are read."""
        if recipe.history.form == "codes":
            return self.codes_spec is not None and self.codes_spec.kind in ("rq-vae", "residual-kmeans")
        return recipe.history.form == "titles"

    def check_catalog(self, recipe: Recipe, items: int, *, categories: bool) -> None:
        """Hold a catalog of ``items`` items, with or without categories, against the settings; raises `RecipeError`."""
        spec = self.codes_spec
        if spec is None or recipe.history.form != "codes":
            return
        made = spec.kind in ("rq-vae", "residual-kmeans") or (spec.kind == "semantic" and not categories)
        if made and items < spec.size:
            raise RecipeError(
                f"method.codes.size={spec.size}: {items} items cannot have that many codes a level; set it to {items} "
                "or less"
            )


class GenerativeSettings(MethodSettings):
    """Decoding settings of a generative method, for validation, test and by default when served."""

    beams: int = Field(20, ge=1, description="beams, which is the number of texts generated for a history")
    validation_users: int = Field(1000, ge=1, description="validation users evaluated after each epoch")
    final_users: int | None = Field(
        None, ge=1, description="validation users of the final metrics, drawn with the seed; None: all"
    )

    def check_untrained(self, recipe: Recipe) -> None:
        """Zero-shot: nothing but a pretrained language model is asked; raises ``ValueError``."""
        if recipe.backbone.own or recipe.adapter.kind != "lora" or self.trains_beside:
            what = "beside the language model something" if self.trains_beside else "the model"
            raise ValueError(f"optimizer.epochs=0 trains nothing, and {what} would be random or a copy of the backbone")

    def check_titles(self, recipe: Recipe) -> None:
        """Titles are what is written, by a language model that is trained; raises ``ValueError``."""
        form = recipe.history.form
        if form != "titles":
            raise ValueError(f"method {self.kind!r} writes titles: history.form={form!r} has none")
        if recipe.adapter.kind == "none":
            raise ValueError(f"method {self.kind!r} with titles trains a language model: adapter.kind is 'none'")

    def check_own_network(self, recipe: Recipe) -> None:
        """Codes are written by a network of the recipe's own; raises ``ValueError``."""
        if not recipe.backbone.own:
            raise ValueError(
                "history.form='codes' needs a network of its own, backbone.source='none' (given "
                f"{recipe.backbone.source!r})"
            )


class TokenSettings(GenerativeSettings):
    """Of methods whose model reads tokens and nothing else that is trained."""

    sequences: int | None = Field(
        None, ge=1, description="number of windows to train on, drawn once; None: all, with boundaries that change "
        "from epoch to epoch",
    )  # fmt: skip
    kept_states: Literal["fp16", "fp32"] | None = Field(
        None, description="compute the states of the layers below adapter.layers once and store them on disk in this "
        "precision; the boundaries of windows are then the same in every epoch",
    )  # fmt: skip

    @classmethod
    def effects(cls) -> Mapping[str, Effect]:
        """States are kept where layers are frozen; an encoder-decoder has a window for every target."""
        return {
            "kept_states": Effect("adapter.layers", lambda recipe: recipe.adapter.layers is not None),
            "sequences": Effect("backbone.kind='decoder'", lambda recipe: recipe.backbone.kind == "decoder"),
        }

    def check_kept(self, recipe: Recipe) -> None:
        """Kept states must be the same in every step; raises ``ValueError``."""
        if self.kept_states is None:
            return
        if recipe.adapter.kind != "lora" or recipe.adapter.layers is None:
            raise ValueError("method.kept_states needs frozen layers: adapter.kind='lora' with adapter.layers")
        for name, value in (("history.dropout", recipe.history.dropout), ("backbone.dropout", recipe.backbone.dropout)):
            if value:
                raise ValueError(
                    f"method.kept_states needs {name}=0: states that change cannot be kept (given {value})"
                )


def pretrained(backbone: str) -> bool:
    """Whether a backbone has learned from text at large: neither a network of a recipe's own nor one made here from a
    catalog's texts."""
    return backbone not in ("none", "tiny")


def method_names() -> list[str]:
    """Kinds of all methods that can be trained, in alphabetical order."""
    names = {module.name for module in pkgutil.iter_modules(importlib.import_module(METHODS).__path__)}
    return sorted(name for name in names if "_" not in name and name != "base")


def training_method(kind: str) -> Any:
    """The `training.methods.base.TrainingMethod` of a kind; raises ``ValueError`` where there is none."""
    if kind not in (known := method_names()):
        raise ValueError(f"method {kind!r} not found; known methods are {', '.join(known)}")
    return importlib.import_module(f"{METHODS}.{kind}").METHOD


class Recipe(ModelSpec):
    """A complete recipe: the sections of the model, the optimizer, the method, the index, and the recipe it requires.

    ``method`` is one of the settings classes of `training.methods`, chosen by its ``kind``.
    """

    name: str
    summary: str
    source: str = Field(description="paper or document the method comes from")
    optimizer: OptimizerSpec = OptimizerSpec()
    method: SerializeAsAny[MethodSettings]
    index: AnyIndexSpec = Field(FlatSpec(), description="index that finds items for a user vector; kinds: index/kinds")
    requires: str | None = Field(None, description="recipe whose artifact gives the id table to start from")

    @field_validator("method", mode="before")
    @classmethod
    def _of_its_kind(cls, given: Any) -> Any:
        if isinstance(given, MethodSettings):
            return given
        if not isinstance(given, dict) or "kind" not in given:
            raise ValueError(f"a method needs a kind; known are {', '.join(method_names())}")
        return training_method(str(given["kind"])).Settings.model_validate(given)

    @model_validator(mode="after")
    def _method_fits_the_sections(self) -> Recipe:
        if adapter_of(self.adapter.kind).needs_condition and not self.method.encodes:
            raise ValueError(
                f"adapter.kind={self.adapter.kind!r} is gated by a state beside the history, which method "
                f"{self.method.kind!r} does not give it"
            )
        self.method.check(self)
        if not self.optimizer.epochs:
            self.method.check_untrained(self)
        return self

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe that a manifest holds as data, also one of an earlier version."""
        return cls.model_validate(upgraded(data))

    def derived(self, name: str, *, summary: str, source: str, **sections: Mapping[str, Any]) -> Recipe:
        """Another recipe that differs in some settings.

        Args:
            name, summary, source: of the new recipe.
            sections: for each changed section, its changed fields.
        """
        changed = {
            section: getattr(self, section).model_copy(update=dict(fields)) for section, fields in sections.items()
        }
        return Recipe.model_validate(dict(self) | changed | {"name": name, "summary": summary, "source": source})

    def model_spec(self) -> ModelSpec:
        """The part an artifact needs at serving time."""
        return ModelSpec(**{name: getattr(self, name) for name in ModelSpec.model_fields})


def refuse_repeats(settings: Sequence[str]) -> None:
    """Raises `RecipeError` for a setting that is given twice on a command line."""
    paths = [setting.partition("=")[0] for setting in settings]
    for path in paths:
        if paths.count(path) > 1:
            raise RecipeError(f"setting {path} is given more than once; give it once")


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """``recipe`` with ``section.field=value`` settings applied; values are JSON, or text where that fails.

    Raises:
        RecipeError: no such section or field, a value that is not allowed, or a setting that nothing reads.
    """
    data = recipe.model_dump()
    index = index_settings([setting for setting in settings if setting.startswith("index.")])
    for setting in settings:
        path, sign, text = setting.partition("=")
        if path.startswith("index."):  # its fields follow from its kind: see index_settings
            continue
        if not sign or ("." not in path and path != "requires"):
            hint = " (or requires=RECIPE)" if sign else ""
            raise RecipeError(f"setting {setting!r} is not of the form section.field=value{hint}")
        if path == "requires":
            data[path] = text or None
            continue
        section, field = _section(data, setting, path)
        section[field] = _value(text)
    if index:
        try:
            data["index"] = changed(recipe.index, index).model_dump()
        except ValueError as error:
            raise RecipeError(f"recipe {recipe.name!r}: {error}") from error
    try:
        found = Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise RecipeError(f"recipe {recipe.name!r}: {where}: {first['msg']} (given {first['input']!r:.80})") from error
    for path, _, text in (setting.partition("=") for setting in settings):
        if not (effect := effect_of(found, path)).acts(found) and not (path == "requires" and not text):
            raise RecipeError(
                f"setting {path}={text}: {path} has no effect on this recipe; it is read with {effect.where}"
            )
    return found


def index_settings(settings: Sequence[str]) -> dict[str, Any]:
    """The values of ``index.field=value`` settings by field; raises `RecipeError` for any other setting."""
    found = {}
    for setting in settings:
        path, sign, text = setting.partition("=")
        key, _, field = path.partition(".")
        if not sign or key != "index" or not field:
            raise RecipeError(f"setting {setting!r} is not of the form index.field=value")
        found[field] = _value(text)
    return found


def effect_of(recipe: Recipe, path: str) -> Effect:
    """When the setting at ``path`` is read."""
    key, _, rest = path.partition(".")
    if key != "method" and not recipe.method.learns:
        return LEARNED
    return recipe.method.effects().get(rest, ALWAYS) if key == "method" else EFFECTS.get(path) or EFFECTS[key]


def _section(data: dict[str, Any], setting: str, path: str) -> tuple[dict[str, Any], str]:
    """The section that a setting is in, and its field; raises `RecipeError`."""
    *sections, field = path.split(".")
    section, passed = data, "recipe"
    for key in sections:
        if not isinstance(section.get(key), dict):
            known = ", ".join(name for name, value in section.items() if isinstance(value, dict))
            moved = f"; what was {sections[0]!r} is {MOVED[sections[0]]!r} now" if sections[0] in MOVED else ""
            raise RecipeError(f"setting {setting!r}: no section {key!r}; sections are {known or 'none'}{moved}")
        section, passed = cast("dict[str, Any]", section[key]), f"section {key!r}"
    if field not in section or path == "method.kind":
        fields = ", ".join(name for name in section if (sections, name) != (["method"], "kind"))
        raise RecipeError(f"setting {setting!r}: {passed} has no field {field!r}; it has {fields}")
    return section, field


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None if text in ("None", "") else text
