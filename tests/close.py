"""One measure of numerical agreement for all tests; knows nothing of what is compared."""

import torch


def assert_close(name: str, ours: torch.Tensor, theirs: torch.Tensor, ratio: float) -> None:
    """The RMS of the difference is at most `ratio` times the RMS of `theirs`; a NaN on either side fails."""
    assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}"
    ours, theirs = ours.detach().double(), theirs.detach().double()
    assert not theirs.isnan().any(), f"{name}: the reference holds NaN"
    assert not ours.isnan().any(), f"{name}: {int(ours.isnan().sum())} of {ours.numel()} values are NaN"
    error, size = (ours - theirs).square().mean().sqrt().item(), theirs.square().mean().sqrt().item()
    assert error <= ratio * size, (
        f"{name}: RMS error is {error / size if size else error:.2e} of RMS, allowed {ratio:.0e}"
    )
