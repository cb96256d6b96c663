"""The least that a frozen layer can keep for its backward, from the shape of the model alone."""

from slamkern.training.step_cost import Dimensions


def minimum_saved(shape: Dimensions, itemsize: int = 2) -> dict[str, float]:
    """Bytes a token that a frozen layer above the lowest trained one must keep, by component.

    Each norm its input and one float32 statistic; attention q, k, v, its output and a float32 logsumexp a head; the
    FFN gate and up. Together 4D + 2G + 2F + 8 + 4H bytes (D, G, F: bytes of the hidden size, keys, neurons).
    """
    return {
        "norms": 2 * (shape.hidden * itemsize + 4),
        "attention": 2 * (shape.heads_width + shape.key_value_width) * itemsize + 4 * shape.heads,
        "ffn": 2 * shape.neurons * itemsize,
    }
