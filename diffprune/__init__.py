"""Data pruning for generative diffusion models: choose what to drop before a model is trained.

The names in `__all__` are the front door. Each is imported from its home when it is first asked for, so that
`import diffprune` itself loads nothing."""
__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers
    from .core.store import Store as Store
    from .data.datasets import load_dataset as load_dataset
    from .data.datasets import register_dataset as register_dataset
    from .data.images import ImageDataset as ImageDataset
    from .features.embed import embed_images as embed_images
    from .features.embed import load_backbone as load_backbone
    from .metrics.evaluate import evaluate as evaluate
    from .metrics.evaluate import measure as measure
    from .metrics.memorization import memorization as memorization
    from .pruning.cluster_pruners import ClusterPruner as ClusterPruner
    from .pruning.registry import make_pruner as make_pruner
    from .pruning.registry import method_names as method_names
    from .pruning.registry import register_pruner as register_pruner
    from .pruning.select import RandomPruner as RandomPruner
    from .pruning.select import ScorePruner as ScorePruner
    from .pruning.select import Selection as Selection
    from .pruning.select import select as select
    from .study.presets import load_preset as load_preset
    from .study.runs import Run as Run
    from .study.study import Study as Study

_DOOR = {  # home -> names
    "data.datasets": ("load_dataset", "register_dataset"),
    "data.images": ("ImageDataset",),
    "features.embed": ("load_backbone", "embed_images"),
    "pruning.select": ("RandomPruner", "ScorePruner", "Selection", "select"),
    "pruning.cluster_pruners": ("ClusterPruner",),
    "pruning.registry": ("make_pruner", "register_pruner", "method_names"),
    "metrics.evaluate": ("evaluate", "measure"),
    "metrics.memorization": ("memorization",),
    "study.presets": ("load_preset",),
    "study.runs": ("Run",),
    "study.study": ("Study",),
    "core.store": ("Store",),
}
_HOMES = {name: home for home, names in _DOOR.items() for name in names}
__all__ = list(_HOMES)


def __getattr__(name):
    if name not in _HOMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return found


def __dir__(): return sorted({*globals(), *__all__})
