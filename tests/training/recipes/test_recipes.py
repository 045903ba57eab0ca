"""Recipes are found by file name, and a wrong setting says what was given and what is allowed."""

from __future__ import annotations

import pytest

from training.recipe import refuse_repeats
from training.recipes import RecipeError, get_recipe, recipe_names


def test_every_recipe_file_gives_a_whole_recipe_of_its_name() -> None:
    names = recipe_names()
    assert {"sasrec", "anyo"} <= set(names)
    for name in names:
        recipe = get_recipe(name)
        assert recipe.name == name
        assert recipe.summary
        assert recipe.source


def test_a_recipe_fits_itself_to_its_backbone() -> None:
    assert get_recipe("anyo", backbone="tiny").backbone.source == "tiny"
    assert get_recipe("anyo", backbone="minilm").backbone.layers == 3
    with pytest.raises(RecipeError, match="'sasrec' has no language model: backbone 'minilm' is not allowed"):
        get_recipe("sasrec", backbone="minilm")


def test_settings_change_one_field() -> None:
    recipe = get_recipe("anyo", ["history.form=titles", "optimizer.epochs=3", "backbone.source=some/folder"])
    assert (recipe.history.form, recipe.optimizer.epochs, recipe.backbone.source) == ("titles", 3, "some/folder")
    assert recipe.items == get_recipe("anyo").items


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bigrek", [], "recipe 'bigrek' not found; known recipes: .*anyo.*sasrec"),
        ("anyo", ["history"], "not of the form section.field=value"),
        ("anyo", ["hist.form=titles"], "no section 'hist'; sections are history"),
        ("anyo", ["history.shape=titles"], "section 'history' has no field 'shape'; it has form"),
        ("anyo", ["history.form=titels"], r"history\.form.*'ids', 'titles', 'compressed', 'text' or 'codes'.*titels"),
        ("genre", ["method.objective.kind=sampled"], r"no section 'objective'; sections are codes"),
        ("genre", ["history.instruction=Read"], r"history\.instruction has no effect"),
        ("genre", ["method.codes.size=9"], r"method\.codes\.size has no effect"),
        ("tiger", ["method.tasks.rating=0.5"], r"no section 'tasks'"),
        ("tiger", ["codes.size=9"], r"no section 'codes'; sections are .*what was 'codes' is 'method.codes' now"),
        ("tiger", ["method.kind=p5"], r"section 'method' has no field 'kind'; it has beams"),
        ("p5", ['method.tasks.families=["rating"]'], r"lacks 'sequential', which is selected on and served"),
        ("sasrec", ["projector.recent=3"], r"projector\.recent=3 needs projector\.residual"),
        ("anyo", ["method.beams=9"], r"has no field 'beams'; it has objective"),
        ("genre", ["method.candidates=9"], r"has no field 'candidates'"),
        (
            "bigrec",
            ["method.among=children"],
            r"has no field 'among'; it has beams, validation_users, final_users, sequences",
        ),
        ("p5", ["method.among=children"], r"has no field 'among'"),
        ("p5", ["method.codes.collaborative=0.5"], r"method\.codes\.collaborative has no effect"),
        ("genre", ["method.copying=9"], r"has no field 'copying'"),
        ("llara", ["method.copying=9", "adapter.kind=lora"], r"method\.copying trains all of the backbone"),
        ("llara", ["history.form=ids"], r"writes titles: history\.form=.ids. has none"),
        ("tallrec", ['method.labels=["Yes","No","Maybe"]'], "yes and no are two"),
        ("tallrec", ["method.answers=choices", "method.liked_above=4"], r"method\.liked_above has no effect"),
        ("tallrec", ["method.beams=4"], r"method\.beams has no effect"),
        ("llamarec", ['method.labels=["A","A"]'], "labels are different texts"),
        ("llamarec", ["method.window=27"], "26 labels are known"),
        ("llamarec", ["method.negatives=retrieved", "requires="], "set requires to its recipe"),
        ("anyo", ["optimizer.epochs=0"], "'dense' would answer at random"),
        ("anyo", ["method.objective.pull=0.1"], "method.objective.pull needs requires"),
        ("sasrec", ["history.form=titles"], "needs a language model"),
        ("sasrec", ["items.tower=text"], "items.text_source"),
        ("sasrec", ["items.dim=64"], r"backbone\.width \(128\) = items\.dim \(64\)"),
        ("anyo", ["history.form=titles", "history.vectors_per_item=2"], "vectors_per_item=2 needs form='compressed'"),
    ],
)
def test_a_wrong_name_or_setting_is_explained(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe(name, settings)


@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "1e999", "[" * 100_000, "9" * 5000])
@pytest.mark.parametrize("path", ["optimizer.rate", "optimizer.clip", "optimizer.weight_decay", "optimizer.epochs"])
def test_numbers_that_are_none_are_refused(path: str, value: str) -> None:
    with pytest.raises(RecipeError, match="optimizer"):
        get_recipe("sasrec", [f"{path}={value}"])


def test_a_setting_stands_once() -> None:
    with pytest.raises(RecipeError, match=r"optimizer.rate is given more than once"):
        refuse_repeats(["optimizer.rate=0.1", "optimizer.epochs=2", "optimizer.rate=0.2"])
