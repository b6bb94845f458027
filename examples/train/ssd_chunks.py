"""The state-space dual of Mamba-2 in chunks: matrix products, with gradients for everything.

arXiv 2405.21060, section 6: inside a chunk the recurrence is a masked product of queries and keys;
from chunk to chunk its state is carried, here by one matrix of decays between all chunks.

    y, state = ssd(x, dt, A, B, C, D=D, dt_bias=dt_bias, dt_limit=(0.0, inf), state=state)
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad, softplus

CHUNK = 64


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None,
    dt_bias: torch.Tensor | None,
    dt_limit: tuple[float, float],
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longspan.kernels.ssd.ssd`; decays and states are float32, products the dtype of x."""
    wide, length = A.dtype, x.shape[1]
    step = softplus(dt.to(wide) if dt_bias is None else dt.to(wide) + dt_bias.to(wide))
    step = step.clamp(*dt_limit)
    # A token with a step of zero is not there: it neither adds to the state nor lets it decay.
    more = -length % CHUNK
    u, B, C = (pad(tensor, (0, 0, 0, 0, 0, more)) for tensor in (x * step[..., None], B, C))
    y, state = _chunks(u.to(x.dtype), pad(step, (0, 0, 0, more)) * A, B, C, state)
    y = y[:, :length]
    if D is not None:
        y = y + (D if D.dim() == 2 else D[:, None]).to(y.dtype) * x
    return y.to(x.dtype), state


def _chunks(
    u: torch.Tensor, log_decay: torch.Tensor, B: torch.Tensor, C: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole chunks: u [B, L, H, P] times its step, log decays float32 [B, L, H]."""
    rows, length, heads, width = u.shape
    groups, states = B.shape[2:]
    chunks, own = length // CHUNK, heads // groups
    # From here: r row, c chunk, g group, h head of the group, q and s tokens of a chunk.
    u = u.view(rows, chunks, CHUNK, groups, own, width)
    B, C = (tensor.view(rows, chunks, CHUNK, groups, states) for tensor in (B, C))
    total = log_decay.view(rows, chunks, CHUNK, groups, own).cumsum(2)
    by_head = total.permute(0, 1, 3, 4, 2)

    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=u.device).triu(1)
    between = (by_head[..., :, None] - by_head[..., None, :]).masked_fill(later, float("-inf"))
    scores = torch.einsum("rcqgn,rcsgn->rcgqs", C, B)[:, :, :, None] * between.exp().to(u.dtype)
    y = torch.einsum("rcghqs,rcsghp->rcqghp", scores, u)

    to_end = (total[:, :, -1:] - total).exp().to(u.dtype)[..., None]
    added = torch.einsum("rcsgn,rcsghp->rcghnp", B, u * to_end).to(state.dtype)
    first = state.view(rows, 1, groups, own, states, width)
    before = torch.einsum(
        "rghcd,rdghnp->rcghnp", _between_chunks(by_head[..., -1]), torch.cat([first, added], dim=1)
    )
    carried = torch.einsum("rcqgn,rcghnp->rcqghp", C, before[:, :-1].to(u.dtype))
    y = y + carried * total.exp().to(u.dtype)[..., None]
    return y.reshape(rows, length, heads, width), before[:, -1].reshape(state.shape)


def _between_chunks(decay: torch.Tensor) -> torch.Tensor:
    """Decays from the end of each chunk, and the start of all, to each chunk's start and the end.

    Args:
        decay: float32 [B, C, G, H], the log decay through each chunk.

    Returns:
        float32 [B, G, H, C + 1, C + 1], lower triangular.
    """
    total = pad(decay.permute(0, 2, 3, 1).cumsum(-1), (1, 0))
    later = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool, device=decay.device)
    between = total[..., :, None] - total[..., None, :]
    return between.masked_fill(later.triu(1), float("-inf")).exp()
