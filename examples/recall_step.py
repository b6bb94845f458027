"""One step of training on one segment, as plain calls or as a CUDA graph, and its optimizer.

Not known here: documents, the order of the stages, the clock.

    trainer = Trainer(model, new_optimizer(model, lr=2e-3), stage, graphs=True)
    trainer.load(segment)
    trainer.train()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from recall_model import Samba
from torch.nn import functional as F

from longspan.passkey import KEY_DIGITS

ANSWER_TOKENS = KEY_DIGITS + 2  # a space before the digits, a line end after them
LM_TOKENS = 4096  # tokens a step whose language-model loss is taken
CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Documents of up to `segments` segments (a power of two), with gaps of up to `gap` tokens.

    `lm` weighs the language-model loss. It is nothing at first: recall then starts in hundreds of
    steps instead of thousands.
    """

    gap: int
    length: int
    rows: int
    segments: int = 1
    lm: float = 0.0


class Trainer:
    """Buffers of one stage, and the two things done with them: train on a segment, or pass by."""

    def __init__(
        self, model: Samba, optimizer: torch.optim.Optimizer, stage: Stage, graphs: bool
    ) -> None:
        """Allocate, and with `graphs` capture both steps as CUDA graphs."""
        self.model, self.optimizer, self.stage = model, optimizer, stage
        device = model.device
        self.state = model.new_state(stage.rows)
        self.tokens = torch.zeros(stage.rows, stage.length, dtype=torch.long, device=device)
        spots = min(stage.length - ANSWER_TOKENS - 1, max(1, LM_TOKENS // stage.rows))
        self.lm_places = torch.arange(spots, device=device)
        self.right = torch.zeros(stage.rows, KEY_DIGITS, device=device)
        self.losses = torch.zeros(2, device=device)
        self.train: Callable[[], None] = self._train
        self.skip: Callable[[], None] = self._skip
        if graphs:
            self.skip = captured(self._skip, warm_up=self._skip)
            self.train = captured(self._train, warm_up=self._gradients)
        self.reset()

    def reset(self) -> None:
        """Begin new documents."""
        for tensor in self.state:
            tensor.zero_()

    def load(self, segment: torch.Tensor) -> None:
        """Take tokens [B, L], and draw the places of the language-model loss."""
        self.tokens.copy_(segment)
        last = segment.shape[1] - ANSWER_TOKENS - 1
        places = torch.randperm(last, device=segment.device)[: len(self.lm_places)]
        self.lm_places.copy_(places)

    def _skip(self) -> None:
        with torch.no_grad():
            _, after = self.model(self.tokens, self.state)
        for mine, new in zip(self.state, after, strict=True):
            mine.copy_(new)

    def _gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        hidden, _ = self.model(self.tokens, self.state)
        answer = self.model.head(hidden[:, -ANSWER_TOKENS - 1 : -1])
        target = self.tokens[:, -ANSWER_TOKENS:]
        answer_loss = F.cross_entropy(answer.flatten(0, 1), target.flatten())
        words = self.model.head(hidden.index_select(1, self.lm_places))
        lm_loss = F.cross_entropy(
            words.flatten(0, 1), self.tokens.index_select(1, self.lm_places + 1).flatten()
        )
        torch.autograd.backward(answer_loss + self.stage.lm * lm_loss)
        self.losses.copy_(torch.stack([answer_loss.detach(), lm_loss.detach()]))
        self.right.copy_((answer.argmax(-1) == target)[:, 1:-1])

    def _train(self) -> None:
        self._gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()


def captured(work: Callable[[], None], warm_up: Callable[[], None]) -> Callable[[], None]:
    """`work` as a CUDA graph, after `warm_up` has compiled and allocated what it needs."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            warm_up()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def new_optimizer(model: Samba, lr: float) -> torch.optim.Optimizer:
    """AdamW whose state exists from the start, so that a CUDA graph can hold its step."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and not n.endswith("A_log")]
    known = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in known]
    device = matrices[0].device
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=torch.tensor(lr, device=device),
        betas=(0.9, 0.98),
        fused=True,
        capturable=device.type == "cuda",
    )
    set_lr(optimizer, 0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for state in optimizer.state.values():
        state["step"].zero_()
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Fill the learning-rate tensors in place: a CUDA graph reads them."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)
