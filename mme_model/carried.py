"""What exports say beside weights in others' formats, so that they are read back as they were.

Those formats have no place for how the frames of a clip are chosen, and a .pth file none for its
frames, its size, attention heads and names of classes. All of it stands under the key "mme" of
config.json or of the .pth file's mapping, which other programs do not look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .finetune_recipe import FinetuneRecipe
from .vit import decoder_shape, encoder_shape

if TYPE_CHECKING:
    from .weights import Weights

__all__ = ["KEY", "SAID", "Carried", "carried"]

KEY = "mme"
SAID = ("heads", "decoder_heads", "classes")
"""What config.json says by itself, and a .pth file does not."""
VIEWS = ("frames", "size", "sampling", "stride", "short_side", "test_clips", "test_crops")
"""Fields of `ViewConfig` that say what a view for testing is."""
CLIP = ("frames", "size", "stride")
"""Fields of `TargetConfig` that say what a clip is."""


def carried(weights: Weights) -> dict[str, Any]:
    """What is written under `KEY`: plain values."""
    model = weights.recipe.model
    tests = isinstance(weights.recipe, FinetuneRecipe)
    said: dict[str, Any] = {
        "views" if tests else "clip": {
            name: getattr(weights.clip, name) for name in (VIEWS if tests else CLIP)
        },
        "heads": encoder_shape(model).heads,
    }
    if weights.kind == "classifier":
        said["classes"] = [str(name) for name in weights.classes]
    if weights.kind == "pretrain":
        said["decoder_heads"] = decoder_shape(model).heads
    return said


class Carried:
    """What was found under `KEY`, of which nothing is known; what is not as it should be is as if
    it were not there.

    Attributes
    ----------
    views : fields of `ViewConfig`, of a classifier's export; empty where there is none.
    clip : fields of views or of targets that tell a clip.
    stride : that of `clip` alone; empty unknown.
    heads, decoder_heads : attention heads; 0 unknown.
    classes : names of a classifier's classes; empty unknown.
    """

    def __init__(self, found: Any) -> None:
        found = found if isinstance(found, dict) else {}
        self.views = _known(found.get("views"), VIEWS)
        self.clip = _known(found.get("clip"), CLIP) or self.views
        self.stride = _known(self.clip, ("stride",))
        heads = _known(found, ("heads", "decoder_heads"))
        self.heads: int = heads.get("heads", 0)
        self.decoder_heads: int = heads.get("decoder_heads", 0)
        names = found.get("classes")
        sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
        self.classes: list[str] = names if sound else []

    def views_of(self, clip: dict[str, int]) -> dict[str, Any]:
        """What `views` say of a view beside its frames and size, which are `clip`'s."""
        found = {name: value for name, value in self.views.items() if name not in clip}
        if found.get("short_side", 0) < clip["size"]:  # another size was asked for
            found["short_side"] = 0
        return found if self.views else {}


def _known(values: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of `names` that have a plausible value; the config that takes them checks the rest."""
    if not isinstance(values, dict):
        return {}
    kinds = {name: str if name == "sampling" else int for name in names}
    return {
        name: values[name]
        for name in names
        if type(values.get(name)) is kinds[name] and (name == "sampling" or values[name] >= 0)
    }
