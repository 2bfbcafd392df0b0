"""Pictures as PNG files, drawn without a screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no screen

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def save_spectrogram(waveform: np.ndarray, sample_rate: int, path: Path, title: str = "") -> None:
    """The power spectrogram of `waveform [T]`, 80 dB deep, 25 ms windows."""
    figure, axes = _figure(5, 3)
    _draw_spectrogram(axes, waveform, sample_rate)
    axes.set(xlabel="seconds", ylabel="Hz", title=title)
    figure.savefig(path, dpi=110)


def save_spectrograms(panels: Sequence[tuple[np.ndarray, int, str]], path: Path, columns: int = 4) -> None:
    """A sheet of spectrograms, as `save_spectrogram` draws them: (waveform `[T]`, Hz, title) each."""
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.2 * rows), layout="constrained")
    for number, (waveform, sample_rate, title) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_spectrogram(axes, waveform, sample_rate)
        axes.set_title(title, fontsize=7)
        axes.tick_params(labelsize=6)
    figure.savefig(path, dpi=110)


def _draw_spectrogram(axes: Any, waveform: np.ndarray, sample_rate: int) -> None:
    window = max(16, sample_rate // 40)
    padded = np.pad(waveform, (0, max(0, window - len(waveform))))
    with np.errstate(divide="ignore"):
        _, _, _, image = axes.specgram(padded, NFFT=window, Fs=sample_rate, noverlap=window * 3 // 4, cmap="magma")
    top = float(image.get_array().max())
    image.set_clim(top - 80, top)
    axes.set_facecolor("black")  # digital silence has no level to draw


def save_heatmaps(panels: Sequence[tuple[np.ndarray, str]], path: Path, columns: int = 4) -> None:
    """A sheet of matrices `[rows, columns]` with their titles, row 0 on top."""
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.8 * columns, 2.6 * rows), layout="constrained")
    for number, (matrix, title) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(matrix, aspect="auto", interpolation="nearest", cmap="magma")
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=6)
    figure.savefig(path, dpi=110)


def save_steps(weights: np.ndarray, integral: np.ndarray, marks: Sequence[tuple[float, str]], path: Path) -> None:
    """Weights of frames `[T]` as bars, their running sum as a line, and marks `(frame, text)` where things end."""
    figure, axes = _figure(max(5.0, 0.05 * len(weights)), 3)
    axes.bar(np.arange(len(weights)), weights, width=1.0, color="tab:orange")
    beside = axes.twinx()
    beside.plot(np.arange(len(integral)), integral, color="tab:blue", linewidth=1)
    for frame, text in marks:
        axes.axvline(frame, color="grey", linewidth=0.5)
        axes.text(frame, axes.get_ylim()[1], text, fontsize=7, rotation=90, va="top", ha="right")
    axes.set(xlabel="frame", ylabel="weight")
    beside.set_ylabel("sum of weights")
    figure.savefig(path, dpi=110)


def save_confusion_matrix(counts: np.ndarray, names: Sequence[str], path: Path, title: str = "") -> None:
    """`counts [K, K]`, truth down and prediction across; colours are shares of each row, numbers are counts."""
    size = max(4.0, 0.38 * len(names))
    figure, axes = _figure(size + 0.8, size)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    if len(names) <= 30:
        for row, column in zip(*np.nonzero(counts)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, int(counts[row, column]), ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.savefig(path, dpi=110)
