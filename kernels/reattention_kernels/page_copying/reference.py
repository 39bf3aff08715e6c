"""Some pages to other places, in torch; knows neither keys from values nor what the pages hold."""

import torch


def copy_pages(target: torch.Tensor, places: torch.Tensor, source: torch.Tensor, pages: torch.Tensor) -> None:
    """target[:, places] = source[:, pages].

    Args:
        target: [G, C, T, D], written in place.
        places: [n] int64 on the target's device, no two alike.
        source: [G, P, T, D] of the same type; on another device too, for the kernel in pinned memory of the host.
        pages: [n] int64 on the target's device.
    """
    target[:, places] = source[:, pages.to(source.device)].to(target.device)
