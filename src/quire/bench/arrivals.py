"""When each request is due."""

from __future__ import annotations

import math

import numpy as np


def due_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds after the start at which requests are due; the first at 0.

    Gaps follow a gamma distribution with mean 1/rate and shape `burstiness`: 1 is a Poisson process, smaller values
    come in bursts, larger ones evenly. They are stretched so that their mean is 1/rate exactly: a short run then offers
    the rate that its report names.

    Args:
        count: number of requests.
        rate: per second; inf is all at once.
        burstiness: above 0.
        seed: of the draw.
    """
    if math.isinf(rate) or count < 2:
        return [0.0] * count
    gaps = np.random.default_rng(seed).gamma(burstiness, 1.0 / (rate * burstiness), count - 1)
    total = gaps.sum()
    gaps = gaps * ((count - 1) / rate / total) if total > 0 else np.full(count - 1, 1.0 / rate)
    return [0.0, *np.cumsum(gaps).tolist()]
