"""`distill`: which draft its options ask for."""

from __future__ import annotations

import pytest

from mirror_edge.apps.distill import DraftOptions, RecipeOptions
from mirror_edge.errors import OptionError
from mirror_edge.export import DraftShape, Recipe


def test_a_draft_is_a_folder_or_a_shape() -> None:
    assert DraftOptions("folder").checked() == "folder"
    assert DraftOptions(None, 2, 256, draft_heads=4).checked() == DraftShape(2, 256, 4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (DraftOptions("folder", draft_heads=4), "--draft already has a shape"),
        (DraftOptions(draft_layers=2), "needs --draft-layers and --draft-hidden"),
        (DraftOptions(), "needs --draft-layers and --draft-hidden"),
    ],
)
def test_options_that_do_not_go_together_are_refused(asked: DraftOptions, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        asked.checked()


def test_the_defaults_are_the_recipe_s_own() -> None:
    assert RecipeOptions().checked() == Recipe()
