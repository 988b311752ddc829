"""UniPC of order 2 as linear tables: per step the coefficients of the state, the model's answers and their memory.

The solver is the one of the X-WAM release (data prediction, `bh2`, corrector on, first and last step of order 1;
facts/x_wam.md 4.1).  With tables the loop holds no solver code: one row of constants per step does it.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

COLUMNS = ("timestep_int", "sigma", "corr_x", "corr_last", "corr_m", "corr_m1", "corr_m2", "pred_x", "pred_m", "pred_m1")
DEFAULT_SHIFT = 5.0
_FIRST_LEVEL = 0.999  # the grid starts just below pure noise, where log(alpha) is finite


def unipc_table(num_steps: int, shift: float = DEFAULT_SHIFT) -> npt.NDArray[np.float64]:
    """Rows [num_steps, 10] of `COLUMNS`.

    With m = x - sigma * velocity, one step is
    xc = corr_x*x + corr_last*last + corr_m*m + corr_m1*m1 + corr_m2*m2 (correct the previous step with the new answer),
    x' = pred_x*xc + pred_m*m + pred_m1*m1 (predict), then last, m2, m1 = xc, m1, m.

    Raises:
        ValueError: fewer than one step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    levels = np.linspace(_FIRST_LEVEL, 0, num_steps + 1)
    sigma = shift * levels / (1 + (shift - 1) * levels)
    rows = []
    for i in range(num_steps):
        corrector = (1.0, 0.0, 0.0, 0.0, 0.0) if i == 0 else (0.0, *_corrector(sigma, i, _order(i - 1, num_steps)))
        rows.append((int(1000 * sigma[i]), sigma[i], *corrector, *_predictor(sigma, i, _order(i, num_steps))))
    return np.array(rows)


def finished_rows(num_rows: int) -> npt.NDArray[np.float64]:
    """Rows [num_rows, 10] that leave a state exactly as it is, at timestep 0: for a state that is done before the others."""
    row = np.zeros((1, len(COLUMNS)))
    row[0, [COLUMNS.index("corr_x"), COLUMNS.index("pred_x")]] = 1.0
    return np.repeat(row, num_rows, axis=0)


def _order(step: int, num_steps: int) -> int:
    return 1 if step in (0, num_steps - 1) else 2


def _lambda(sigma: float) -> float:
    return math.log(1 - sigma) - math.log(sigma)


def _predictor(sigma: npt.NDArray[np.float64], i: int, order: int) -> tuple[float, float, float]:
    """(pred_x, pred_m, pred_m1) from sigma[i] to sigma[i + 1]; at sigma 0 the data prediction is the answer."""
    if sigma[i + 1] == 0:
        return 0.0, 1.0, 0.0
    h = _lambda(sigma[i + 1]) - _lambda(sigma[i])
    weight = -(1 - sigma[i + 1]) * math.expm1(-h)
    second = 0.0 if order == 1 else 0.5 / ((_lambda(sigma[i - 1]) - _lambda(sigma[i])) / h)
    return float(sigma[i + 1] / sigma[i]), weight * (1 - second), weight * second


def _corrector(sigma: npt.NDArray[np.float64], i: int, order: int) -> tuple[float, float, float, float]:
    """(corr_last, corr_m, corr_m1, corr_m2): redo the step from sigma[i - 1] to sigma[i] knowing the answer at sigma[i]."""
    h = _lambda(sigma[i]) - _lambda(sigma[i - 1])
    b = math.expm1(-h)
    weight = -(1 - sigma[i]) * b
    last = float(sigma[i] / sigma[i - 1])
    if order == 1:
        return last, weight * 0.5, weight * 0.5, 0.0
    r = (_lambda(sigma[i - 2]) - _lambda(sigma[i - 1])) / h
    p1 = b / -h - 1
    p2 = p1 / -h - 0.5
    older, newer = np.linalg.solve(np.array([[1.0, 1.0], [r, 1.0]]), np.array([p1 / b, 2 * p2 / b]))
    return last, weight * newer, weight * (1 - older / r - newer), weight * older / r
