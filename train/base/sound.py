"""Are the numbers of a model, or of a training's state, such as training makes? Looked at before they are kept."""

import math

import torch

LARGEST_WEIGHT = 65504.0  # the largest number of float16, in which models are passed on; trained weights are near 1


def what_is_wrong(state: object, largest: float = LARGEST_WEIGHT, name: str = "") -> str:
    """What is wrong with the first spoilt tensor in nested containers, with its name; "" where all are sound.

    Spoilt is what holds a value that is not finite, or a weight beyond `largest`; an optimizer's moments may be large.
    """
    if isinstance(state, torch.Tensor):
        return _of_tensor(state, largest, name)
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    for key, value in items:
        within = math.inf if key == "optimizer" else largest
        if wrong := what_is_wrong(value, within, f"{name}.{key}".lstrip(".")):
            return wrong
    return ""


def _of_tensor(tensor: torch.Tensor, largest: float, name: str) -> str:
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:  # has shapes, and no values
        return ""
    low, high = (float(end) for end in tensor.detach().aminmax())  # without a copy; NaN where there is one
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{name} holds values that are no finite numbers"
    most = max(-low, high)
    return f"{name} holds {most:.3g}, which no trained weight comes near" if most > largest else ""
