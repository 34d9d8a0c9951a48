"""curves.png: success, path KL against its budget, lambda and the critic over the updates."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from trqam_fast.training.config import TrainConfig
from trqam_fast.training.run_folder import CsvLog, RunFolder


def series(log: CsvLog, column: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of `column` by seed, rows without a value left out."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in log.read():
        if row.get(column):
            steps, values = found.setdefault(row["seed"], ([], []))
            steps.append(int(row["step"]))
            values.append(float(row[column]))
    return found


def plot_curves(folder: RunFolder, config: TrainConfig) -> None:
    """Draw curves.png from the folder's CSV files."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    lower = {
        "trqam": [("lam", "lambda"), ("critic_loss", "critic loss")],
        "qam": [("adjoint_loss", "adjoint-matching loss"), ("critic_loss", "critic loss")],
        "bc": [("bc_loss", "behaviour-cloning loss"), ("grad_norm", "gradient norm")],
    }[config.algo]
    panels = [
        (axes[0, 0], folder.eval, "success", "success rate"),
        (axes[0, 1], folder.metrics, "path_kl", "path KL per action step (nats)"),
        *(
            (axis, folder.metrics, column, label)
            for axis, (column, label) in zip(axes[1], lower, strict=True)
        ),
    ]
    for axis, log, column, label in panels:
        for seed, (steps, values) in series(log, column).items():
            axis.plot(steps, values, marker="o", markersize=3, linewidth=1, label=f"seed {seed}")
        axis.axvline(config.bc_steps, color="0.7", linewidth=1, linestyle=":")
        axis.set(xlabel="updates (dotted: end of pretraining)", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylim(-0.02, 1.02)
    if config.algo == "trqam":
        axes[0, 1].axhline(
            config.agent.kl_budget, color="black", linewidth=1, linestyle="--", label="budget"
        )
    for axis, _, column, _ in panels:
        if column not in ("success", "path_kl") and axis.lines[:-1]:
            axis.set_yscale("log")
        if len(axis.get_legend_handles_labels()[0]) > 0:
            axis.legend(fontsize=8)
    figure.suptitle(f"{config.algo} on {config.env_name}")
    figure.savefig(folder.path / "curves.png", dpi=110)
    plt.close(figure)
