"""Operations on tensors, one folder each; they know nothing of layers, models or files.

Every folder holds `reference.py` (plain torch, the paper's equation, the oracle),
`triton_kernel.py`, `onnx_op.py`, and in `__init__.py` the public function: checks, then a choice.
`choose` says which implementation runs and why; `override` replaces it inside a ``with``;
`implementations` says which there are; `recorded` collects what is called inside a ``with``.
"""

from longspan.kernels.choice import Choice, choose, implementations, override, recorded

__all__ = ["Choice", "choose", "implementations", "override", "recorded"]
