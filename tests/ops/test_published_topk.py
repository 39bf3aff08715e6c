"""The published approximate rule: the reference and the kernel against plain Python, block by block."""

import pytest
import torch

from reattention_kernels.launch import INTERPRETED
from reattention_kernels.topk.published_kernel import one_per_block as published_kernel
from reattention_kernels.topk.reference import one_per_block as published
from reattention_kernels.topk.triton_kernel import select_topk as kernel
from tests.ops.devices import both, poisoned
from tests.ops.test_topk import INF, Operation, whole


def by_block(query: torch.Tensor, key: torch.Tensor, k: int, size: int) -> tuple[list[float], list[int]]:
    """The published rule in Python numbers: the first best key of each block, then the best k of those."""
    scores: list[float] = []
    indices: list[int] = []
    n, repeats = key.shape[2], query.shape[1] // key.shape[1]
    for batch in range(query.shape[0]):
        for head in range(query.shape[1]):
            for row in query[batch, head].double():
                every = (key[batch, head // repeats].double() @ row).tolist()
                firsts = [max(range(at, min(at + size, n)), key=lambda i: (every[i], -i)) for at in range(0, n, size)]
                firsts = sorted(firsts, key=lambda i: (-every[i], i))[:k]
                scores += [every[i] for i in firsts] + [-INF] * (k - len(firsts))
                indices += firsts + [-1] * (k - len(firsts))
    return scores, indices


@both(published, published_kernel)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (100, 4), (128, 2), (300, 4), (700, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_one_key_per_block(device: str, operation: Operation, n: int, k: int, dtype: torch.dtype) -> None:
    """Whole numbers, spread so that best keys of blocks differ: their order is then the same everywhere."""
    query, key = whole(2, 4, 2, 8, low=1, dtype=dtype), whole(2, 2, n, 8, low=-40, high=41, dtype=dtype)
    with poisoned(device):
        scores, indices = operation(query.to(device), key.to(device), k)
    expected = by_block(query, key, k, 128)
    assert scores.flatten().tolist() == expected[0]
    exact = query.double() @ key.double().repeat_interleave(2, 1).transpose(2, 3)
    for one, score, index in zip(
        exact.flatten(0, 2), scores.flatten(0, 2).cpu(), indices.flatten(0, 2).cpu(), strict=True
    ):
        real = index >= 0
        assert torch.equal(one[index[real]].float(), score[real])
        assert len(set((index[real] // 128).tolist())) == int(real.sum()) == min(k, -(-n // 128))
        assert score[~real].eq(-INF).all()


def test_blocks_of_another_size() -> None:
    query, key = whole(1, 2, 2, 4), whole(1, 1, 50, 4)
    scores, indices = published(query, key, 3, 16)
    assert (scores.flatten().tolist(), indices.flatten().tolist()) == by_block(query, key, 3, 16)
    with pytest.raises(NotImplementedError, match="blocks of 16 keys"):
        published_kernel(query, key, 3, 16)


@pytest.mark.skipif(not INTERPRETED, reason="the kernel on a GPU takes 16 bits")
def test_the_published_rule_misses_a_neighbour_that_the_exact_one_finds() -> None:
    key = torch.zeros(1, 1, 256, 4)
    key[:, :, 7], key[:, :, 8], key[:, :, 200] = 3.0, 2.0, 1.0
    query = torch.ones(1, 1, 1, 4)
    assert kernel(query, key, 2)[1].flatten().tolist() == [7, 8]
    assert published_kernel(query, key, 2)[1].flatten().tolist() == [7, 200]
