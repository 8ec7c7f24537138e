"""Tokens chosen by a mask in host memory.

How many a mask keeps decides the shape of what follows. Where the mask lies on a GPU the host has to wait for the
device to learn that number, and the device then waits for its next kernel; a mask that stays where batches are made
costs neither.
"""

import torch


def take_kept(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The kept tokens of `x` in their order, on its device: [b, S, ...], bool [b, S] in host memory -> [T, ...].

    A mask on a device is understood too, and waited for.
    """
    places = keep.flatten().nonzero().squeeze(1)
    return x.flatten(0, 1).index_select(0, to_device(places, x.device))


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device that the host does not wait for; x itself where it is there already."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()  # from pageable memory the copy may wait for all that the device has to do
    return x.to(device, non_blocking=True)
