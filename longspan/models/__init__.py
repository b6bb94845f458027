"""Layers, the decoder and the checkpoint families; they know nothing of budgets or requests.

The letters of this package, each with its symbol in the papers:

    B   batch                          D   model width              d_model
    L   tokens of a call               E   inner width              d_inner, ED
    N   state size                     d_state
    K   width of the convolution       d_conv
    R   rank of dt                     dt_rank
    H   query heads, SSM heads         G   key and value heads      n_kv_heads, n_groups
    P   head width                     head_dim                     V   vocabulary
    W   tokens that a window sees, the current one among them

In linear attention K and V are the widths of a head's keys and values, as in its papers.

Activations are row vectors; a weight has the shape (out, in) that torch gives it.
"""
