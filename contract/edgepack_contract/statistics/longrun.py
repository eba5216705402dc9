"""How much more than independent rows do these vary? Calibration of PSI from ordered rows."""

from __future__ import annotations

import numpy as np

from edgepack_contract.drift import independent
from edgepack_contract.reference import Calibration
from edgepack_contract.statistics.marks import Floats, Integers

_SHORTEST_SERIES = 100
"""Under this many rows nothing can be learnt of how they follow each other."""

_QUIET_LAGS = 5


def long_run_calibration(codes: Integers, columns: int) -> Calibration:
    """The calibration of rows that follow each other in time.

    Args:
        codes: The column of ``counts`` (null is the last) that each row falls into, in time order.
        columns: The number of columns, null included.

    Returns:
        Sums over the eigenvalues of D^-1/2 S D^-1/2: S the Bartlett long-run covariance of the
        indicators of the occupied columns, D the diagonal of their shares. Never less than those of
        independent rows: rows that alternate are no reason to trust them more.
    """
    counts = np.bincount(codes, minlength=columns)
    occupied = np.flatnonzero(counts)
    plain = independent(len(occupied))
    if len(occupied) < 2 or len(codes) < _SHORTEST_SERIES:
        return plain
    shares = counts[occupied] / len(codes)
    scaled = ((codes[:, None] == occupied) - shares) / np.sqrt(shares)
    values = np.linalg.eigvalsh(_bartlett(scaled, _bandwidth(scaled)))
    return Calibration(
        sum_l=max(plain.sum_l, float(values.sum())),
        sum_l2=max(plain.sum_l2, float((values**2).sum())),
        max_l=max(plain.max_l, float(values.max())),
    )


def _bartlett(series: Floats, width: int) -> Floats:
    """The Bartlett estimate with lags under ``width`` of centred ``series``, shape (rows, columns).

    It equals the mean of outer products of moving sums over ``width`` rows, ends padded with zeros,
    which costs one product whatever the width (and cannot be indefinite).
    """
    padded = np.concatenate([np.zeros((1, series.shape[1])), np.cumsum(series, axis=0)])
    rows = len(series)
    ends = np.minimum(np.arange(1, rows + width), rows)
    starts = np.maximum(np.arange(1, rows + width) - width, 0)
    sums = padded[ends] - padded[starts]
    product: Floats = sums.T @ sums / (rows * width)
    return product


def _bandwidth(series: Floats) -> int:
    """Four times the lag after which the columns, taken together, no longer follow themselves.

    Politis, "Adaptive bandwidth choice" (J. Nonparametric Statistics 2003): the first lag from
    which on five autocorrelations in a row are within twice their noise. Rules that fit one AR(1)
    to each indicator are too short: a slow input crosses an edge and back, which looks fast. At
    most a quarter of the series.
    """
    rows, columns = series.shape
    power = (np.abs(np.fft.rfft(series, 2 * rows, axis=0)) ** 2).sum(axis=1)
    covariance = np.fft.irfft(power)[: rows // 4]
    noise = 2.0 * np.sqrt(np.log10(rows) / (rows * max(1, columns - 1)))
    quiet = np.abs(covariance / covariance[0]) < noise
    runs = np.lib.stride_tricks.sliding_window_view(quiet[1:], _QUIET_LAGS).all(axis=1)
    last = int(runs.argmax()) if runs.any() else rows // 4
    return int(min(max(1, 4 * last), rows // 4))
