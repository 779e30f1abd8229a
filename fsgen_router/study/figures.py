"""The paper's figures for one's own pairs: rates against sizes, where mismatches fall, what tells them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation import Array, Estimate, interval
from ..evaluation.plots import curve_style, figure_bytes, finish_figure, new_figure, percent_shown
from ..law import CellFit, size_text
from ..law.plots import draw_fit, ratio_panels
from .measures import PER_BIN, PLACES, SIGNALS, CellResult, Found

_SIGNAL_NAMES = {"entropy_nats": "entropy (nats)", "max_prob": "probability of the best token", "margin": "margin"}


def study_figures(cells: Sequence[CellResult], fits: Sequence[CellFit]) -> dict[str, bytes]:
    """PNG files by name, of cells that were measured; those that have nothing to show are left out."""
    made: Mapping[str, Callable[[], Any]] = {
        "sizes": lambda: sizes_figure(cells),
        "ratio": lambda: ratio_figure(cells, fits),
        "quality": lambda: quality_figure(cells),
        "first": lambda: first_figure(cells),
        "places": lambda: places_figure(cells),
        "signals": lambda: signals_figure(cells),
    }
    figures = {name: make() for name, make in made.items()} if cells else {}
    return {name: figure_bytes(figure) for name, figure in figures.items() if figure is not None}


def _found(cell: CellResult) -> Found:
    assert cell.found is not None
    return cell.found


def _label(cell: CellResult, *, of: Sequence[CellResult]) -> str:
    """A cell's name, without the parts that all of ``of`` share."""
    parts = {
        "pair": f"{cell.key.fast} + {cell.key.slow}",
        "method": cell.key.method,
        "dataset": cell.key.dataset,
        "seed": f"seed {cell.key.seed}",
    }
    varied = {
        "pair": len({(one.key.fast, one.key.slow) for one in of}) > 1,
        "method": len({one.key.method for one in of}) > 1,
        "dataset": len({one.key.dataset for one in of}) > 1,
        "seed": len({one.key.seed for one in of}) > 1,
    }
    return ", ".join(part for name, part in parts.items() if varied[name]) or parts["method"]


def _grouped(cells: Sequence[CellResult]) -> dict[tuple[str, str], list[CellResult]]:
    """By method and data set."""
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault((cell.key.method, cell.key.dataset), []).append(cell)
    return groups


def _arms(estimate: Estimate) -> tuple[float, float]:
    low, high = estimate.interval or (estimate.value or 0.0, estimate.value or 0.0)
    value = estimate.value or 0.0
    return max(value - low, 0.0), max(high - value, 0.0)


def sizes_figure(cells: Sequence[CellResult]) -> Any:
    """CoF against both sizes, in three dimensions; None where no sizes are known."""
    sized = [cell for cell in cells if cell.key.fast_params_b and cell.key.slow_params_b]
    if not sized:
        return None
    groups = _grouped(sized)
    figure = new_figure(9.0, 6.5)
    axes = figure.add_subplot(projection="3d")
    for number, ((method, dataset), group) in enumerate(groups.items()):
        style = curve_style(number)
        x = np.log10([cell.key.fast_params_b or 1.0 for cell in group])
        y = np.log10([cell.key.slow_params_b or 1.0 for cell in group])
        z = np.array([100 * (_found(cell).cof.value or 0.0) for cell in group])
        axes.scatter(
            x, y, z, color=style["color"], marker=style["marker"], label=f"{method}, {dataset}", depthshade=False
        )
        for cell, at in zip(group, zip(x, y, z, strict=True), strict=True):
            below, above = _arms(_found(cell).cof)
            axes.plot([at[0]] * 2, [at[1]] * 2, [at[2] - 100 * below, at[2] + 100 * above], color=style["color"])
            axes.plot([at[0]] * 2, [at[1]] * 2, [0, at[2]], color="0.7", linewidth=0.6, linestyle=":")
    for name, axis in (("fast", axes.xaxis), ("slow", axes.yaxis)):
        sizes = sorted({float(getattr(cell.key, f"{name}_params_b")) for cell in sized})
        axis.set_ticks(np.log10(sizes), [size_text(size) for size in sizes])
        axis.set_label_text(f"\n{name} model's parameters")
    axes.set_zlabel("CoF (%)")
    axes.set_zlim(bottom=0)
    axes.view_init(elev=22, azim=-130)
    axes.set_box_aspect(None, zoom=1.0)
    finish_figure(figure, axes, f"Collaboration frequency against both sizes\n{len(sized)} cells, 95% intervals")
    return figure


def ratio_figure(cells: Sequence[CellResult], fits: Sequence[CellFit]) -> Any:
    """CoF against the ratio of sizes with the fitted law and its band: a panel a data set, a colour a method."""
    sized = [cell for cell in cells if cell.key.fast_params_b and cell.key.slow_params_b]
    if not sized:
        return None
    datasets = list(dict.fromkeys(cell.key.dataset for cell in sized))
    methods = list(dict.fromkeys(cell.key.method for cell in sized))
    ratios = {id(cell): (cell.key.slow_params_b or 0) / (cell.key.fast_params_b or 1) for cell in sized}
    by_dataset = {
        name: [np.array([ratios[id(cell)] for cell in sized if cell.key.dataset == name])] for name in datasets
    }
    figure, panels = ratio_panels(by_dataset)
    for (method, dataset), group in _grouped(sized).items():
        axes, style = panels[datasets.index(dataset)], curve_style(methods.index(method))
        x = [ratios[id(cell)] for cell in group]
        y = [_found(cell).cof.value or 0.0 for cell in group]
        arms = np.array([_arms(_found(cell).cof) for cell in group]).T
        look = {"fmt": style["marker"], "color": style["color"], "capsize": 2, "elinewidth": 0.9, "markersize": 5}
        axes.errorbar(x, y, yerr=arms, label=method, **look)
        fit = next((f for f in fits if (f.cell.method, f.cell.dataset) == (method, dataset)), None)
        if fit is not None:
            draw_fit(axes, fit, style["color"])
    for axes in panels:
        axes.legend(fontsize="x-small", frameon=False)
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("CoF, 95% intervals by prompt")
    figure.suptitle("Collaboration frequency against the ratio of sizes, with the law", fontsize="medium")
    return figure


def quality_figure(cells: Sequence[CellResult]) -> Any:
    """Accuracy of the collaboration and of both models alone, a line a cell; None where no answers are expected."""
    judged = [cell for cell in cells if _found(cell).accuracy.value is not None]
    if not judged:
        return None
    figure = new_figure(8.5, 1.8 + 0.32 * len(judged))
    axes = figure.add_subplot()
    looks = {
        "accuracy_fast": ("fast alone", "0.55", "o", -0.18),
        "accuracy_slow": ("slow alone", "black", "s", 0.0),
        "accuracy": ("collaboration", "#D55E00", "D", 0.18),
    }
    for name, (label, colour, marker, shift) in looks.items():
        estimates = [getattr(_found(cell), name) for cell in judged]
        x = [estimate.value for estimate in estimates]
        arms = np.array([_arms(estimate) for estimate in estimates]).T
        y = np.arange(len(judged)) + shift
        axes.errorbar(x, y, xerr=arms, fmt=marker, color=colour, markersize=4, elinewidth=0.9, label=label)
    names = [f"{_label(cell, of=judged)}  (CoF {_found(cell).cof.value:.1%})" for cell in judged]
    axes.set_yticks(np.arange(len(judged)), names, fontsize="small")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(percent_shown)
    axes.set_xlabel("accuracy, 95% intervals by prompt")
    axes.grid(alpha=0.25, axis="x")
    finish_figure(figure, axes, "Quality beside every rate")
    return figure


def first_figure(cells: Sequence[CellResult]) -> Any:
    """Rates in first tokens and in later ones, over answers, by kernel density: a panel a data set."""
    datasets = list(dict.fromkeys(cell.key.dataset for cell in cells))
    methods = list(dict.fromkeys(cell.key.method for cell in cells))
    figure, panels = _panels(len(datasets))
    reach = 0.0
    for axes, dataset in zip(panels, datasets, strict=True):
        for number, method in enumerate(methods):
            rates = [_found(c).per_prompt for c in cells if (c.key.method, c.key.dataset) == (method, dataset)]
            both = np.concatenate(rates) if rates else np.zeros((0, 2))
            if len(both) < 5:
                continue
            colour = curve_style(number)["color"]
            for column, name, line in ((0, "first tokens", "-"), (1, "later tokens", "--")):
                grid, density = kernel_density(both[:, column])
                mean, (low, high) = both[:, column].mean(), interval(both[:, column]).interval or (np.nan, np.nan)
                label = f"{method}, {name}: mean {mean:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
                axes.plot(grid, density, color=colour, linestyle=line, label=label)
                axes.plot(
                    [mean], [0], marker="^", color=colour, fillstyle="full" if column == 0 else "none", clip_on=False
                )
            reach = max(reach, float(both.max()))
        axes.set_title(dataset, fontsize="medium")
        axes.set_xlabel("share of an answer's tokens that differ")
        axes.xaxis.set_major_formatter(percent_shown)
        axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="x-small", frameon=False)
    panels[0].set_ylabel("density over answers")
    panels[0].set_xlim(-0.01, min(1.05 * reach + 0.05, 1.0))
    figure.suptitle("First tokens of an answer against later ones", fontsize="medium")
    return figure if reach else None


def kernel_density(values: Array, points: int = 200) -> tuple[Array, Array]:
    """A Gaussian kernel density of shares in [0, 1], reflected at both ends: grid and density, shape (points,) each.

    Bandwidth by Silverman's rule (1986, equation 3.31).
    """
    spread = min(values.std(), float(np.subtract(*np.quantile(values, (0.75, 0.25)))) / 1.34) or values.std()
    width = max(0.9 * spread * len(values) ** -0.2, 0.01)
    grid = np.linspace(0.0, 1.0, points)
    mirrored = np.concatenate([values, -values, 2 - values])
    kernels = np.exp(-0.5 * ((grid[:, None] - mirrored[None]) / width) ** 2)
    return grid, kernels.sum(axis=1) / (len(values) * width * np.sqrt(2 * np.pi))


def places_figure(cells: Sequence[CellResult]) -> Any:
    """A heat map: a line a cell, mismatch rates by the token's place in the answer."""
    known = np.stack([_found(cell).places for cell in cells])
    if not np.isfinite(known).any():
        return None
    last = int(np.flatnonzero(np.isfinite(known).any(axis=0)).max()) + 1
    figure = new_figure(9.0, 2.2 + 0.3 * len(cells))
    axes = figure.add_subplot()
    image = axes.imshow(100 * known[:, :last], aspect="auto", cmap="magma_r", vmin=0, interpolation="nearest")
    axes.set_yticks(np.arange(len(cells)), [_label(cell, of=cells) for cell in cells], fontsize="small")
    step = max(last // 8, 1)
    axes.set_xticks(np.arange(0, last, step) - 0.5, [str(PER_BIN * at) for at in range(0, last, step)])
    axes.set_xlabel(f"token of the answer, in bins of {PER_BIN} (of the first {PLACES}); white: fewer than 10 tokens")
    figure.colorbar(image, ax=axes, label="CoF (%)")
    figure.suptitle("Where mismatches fall", fontsize="medium")
    return figure


def signals_figure(cells: Sequence[CellResult]) -> Any:
    """Distributions of the fast model's signals at matches and at mismatches: a line a method and data set."""
    groups = {
        name: group
        for name, group in _grouped(cells).items()
        if any(len(_found(c).samples["margin"][1]) for c in group)
    }
    if not groups:
        return None
    figure = new_figure(10.0, 0.8 + 1.9 * len(groups))
    rows = figure.subplots(len(groups), len(SIGNALS), squeeze=False, sharex="col")
    for axes_row, ((method, dataset), group) in zip(rows, groups.items(), strict=True):
        for axes, signal in zip(axes_row, SIGNALS, strict=True):
            match, mismatch = (np.concatenate([_found(c).samples[signal][k] for c in group]) for k in (0, 1))
            top = max(float(match.max(initial=0.0)), float(mismatch.max(initial=0.0)), 1e-9)
            bins = np.linspace(0, top if signal == "entropy_nats" else 1.0, 31)
            for values, name, colour in ((match, "match", "#0072B2"), (mismatch, "mismatch", "#D55E00")):
                weights = np.full(len(values), 1 / max(len(values), 1))
                axes.hist(
                    values, bins=bins, weights=weights, histtype="stepfilled", alpha=0.35, color=colour, label=name
                )
            areas = [_found(c).auroc[signal] for c in group]
            known = [area.value for area in areas if area.value is not None]
            if known:
                span = areas[0].interval if len(areas) == 1 else (min(known), max(known))
                between = "" if span is None else f" [{span[0]:.2f}, {span[1]:.2f}]"
                axes.set_title(f"AUROC {np.mean(known):.2f}{between}", fontsize="small")
            axes.yaxis.set_major_formatter(percent_shown)
        axes_row[0].set_ylabel(f"{method}\n{dataset}", fontsize="small")
    for axes, signal in zip(rows[-1], SIGNALS, strict=True):
        axes.set_xlabel(_SIGNAL_NAMES[signal])
    finish_figure(
        figure,
        rows[0][0],
        "The fast model's uncertainty at matches and mismatches\n"
        "AUROC: the 95% interval of one pair, the range over several",
    )
    return figure


def _panels(count: int) -> tuple[Any, list[Any]]:
    """Panels side by side that share their height."""
    figure = new_figure(max(4.2 * count, 7.5), 5.0)
    panels = list(figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0])
    for axes in panels:
        axes.grid(alpha=0.25)
    return figure, panels
