"""Axes show the whole of what is drawn on them, on linear and logarithmic scales, and legends name what a band is."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from diffprune.report.errata import departed_curves
from diffprune.report.pairs import Likeness, likeness_histograms
from diffprune.report.plots import curve_panels, model_curves, ratio_curves


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def results(methods=("unpruned", "random", "el2n", "validation"), seeds=(0, 1, 2), spread=1e3):
    "Seeds of one method lie far apart, so that the mean says nothing of where the band ends."
    ratio = dict(unpruned=[0.0], validation=[np.nan])
    return pd.DataFrame([dict(method=m, pruning_ratio=r, seed=s, metric="fd", name="FD (toy)", departure=m, value=(1 + (r or 0))*spread**s)
                         for m in methods for r in ratio.get(m, [0.5, 0.9]) for s in seeds])


def drawn(ax):
    "Ends of everything on the axes: (n, 2)."
    bands = [p.vertices for c in ax.collections for p in c.get_paths()]
    lines = [np.column_stack([l.get_xdata(), l.get_ydata()]) for l in ax.lines if l.get_transform() == ax.transData]
    return np.concatenate([b for b in [*bands, *lines] if len(b)])


def whole(ax):
    (x0, x1), (y0, y1), found = ax.get_xlim(), ax.get_ylim(), drawn(ax)
    found = found[np.isfinite(found).all(1)]
    return x0 <= found[:, 0].min() and found[:, 0].max() <= x1 and y0 <= found[:, 1].min() and found[:, 1].max() <= y1


FIGURES = dict(
    ratio=lambda t: ratio_curves(t, "fd").figure,
    panels=lambda t: curve_panels(t, ["fd"]),
    models=lambda t: model_curves(t.replace(dict(method=dict(el2n="vae"))), ["fd"], dict(random="diffusion", vae="VAE")),
    departed=lambda t: departed_curves(t[t.method != "validation"].assign(method="random"), ["fd"]))


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("figure", FIGURES)
def test_axes_fit_the_whole_bands(figure, scale):
    fig = FIGURES[figure](results())
    ax = fig.axes[0]
    ax.set_yscale(scale)
    fig.draw_without_rendering()
    assert max(v[1] for v in drawn(ax)) >= 1e6 and whole(ax)


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_the_legend_names_the_band_once(figure, seeds):
    fig = FIGURES[figure](results(seeds=seeds))
    labels = [t.get_text() for legend in fig.legends for t in legend.get_texts()] or fig.axes[0].get_legend_handles_labels()[1]
    bands = [label for label in labels if label.startswith("band")]
    assert bands == ([f"band: min–max of {len(seeds)} seeds"] if len(seeds) > 1 else []), "one seed has no band"


def test_intervals_in_titles_are_named():
    rng = np.random.default_rng(0)
    same, other = rng.uniform(0.5, 1, 20), rng.uniform(-0.5, 0.5, 20)
    fig = likeness_histograms({"a | b": Likeness(same, other, other, same)}, "pixels")
    assert "[" in fig.axes[0].get_title() and "95 % interval, bootstrap over noises" in fig.axes[0].get_xlabel()
