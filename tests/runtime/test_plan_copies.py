"""How many copies of caches torch holds on CUDA: one, a layer's next, or one for recorded steps."""

from __future__ import annotations

from dataclasses import replace

from test_plan_caches import ENTRY_BYTES, MANIFEST, MIB, planned

from longspan.export.activations import chunk_bytes
from longspan.models.config import AnchorAttentionConfig, MlpConfig, ModelConfig
from longspan.runtime.plan import make_plan, replanned
from longspan.runtime.plan_items import PlanItem, cache_items, copied_caches, sum_bytes

NAME = "caches of the recorded step, beyond a chunk"
ANCHORS = ModelConfig(
    family="none",
    vocab_size=50,
    d_model=16,
    layers=(
        AnchorAttentionConfig(n_heads=2, n_kv_heads=2, head_dim=8, anchor_every=4),
        MlpConfig(d_ff=24),
    )
    * 3,
)


def bytes_of(items: tuple[PlanItem, ...], name: str) -> int:
    return sum(item.bytes for item in items if item.name == name)


def test_a_chunk_writes_into_the_caches_that_it_reads() -> None:
    (item,) = cache_items(MANIFEST, "torch-cuda", 1000)
    assert item == PlanItem(name="cache of 1,000 entries", bytes=1000 * ENTRY_BYTES)


def test_a_guess_is_read_beside_the_caches_before_it() -> None:
    (item,) = cache_items(MANIFEST, "torch-cuda", 1000, drafted=True)
    assert item.bytes == 2 * 1000 * ENTRY_BYTES
    (onnx,) = cache_items(MANIFEST, "onnx-cpu", 1000, drafted=True)
    assert onnx.bytes == 3 * 1000 * ENTRY_BYTES


def test_of_anchors_a_layer_s_next_caches_lie_beside_all() -> None:
    manifest = replace(
        MANIFEST,
        config=ANCHORS,
        state=ANCHORS.state_layout("float32"),
        chunk_bytes=chunk_bytes(ANCHORS, "float32"),
    )
    (item,) = cache_items(manifest, "torch-cuda", 900)
    every = manifest.cache_entry_bytes * 900
    # One of three layers, and what it has that does not grow.
    assert every * 4 // 3 <= item.bytes <= every * 4 // 3 + 1024


def test_a_recorded_step_has_caches_in_the_room_of_a_chunk_and_beyond() -> None:
    room = (PlanItem(name="activations", bytes=1000), PlanItem(name="unfilled", bytes=500))
    capacity = 2000 // ENTRY_BYTES
    (item,) = copied_caches(MANIFEST, "torch-cuda", capacity, room)
    assert item.bytes == capacity * ENTRY_BYTES - 1000
    (item,) = copied_caches(MANIFEST, "torch-cuda", 1, room)
    assert item.bytes == 0
    assert copied_caches(MANIFEST, "onnx-cuda", capacity, room) == ()


def test_a_plan_holds_the_caches_of_its_recorded_step() -> None:
    plan = planned(2**30, tokens=400_000)
    assert plan.step_graph
    chunk = tuple(item for item in plan.items if item.name.startswith(("activ", "alloc")))
    caches = plan.capacity * ENTRY_BYTES
    assert bytes_of(plan.items, NAME) == max(0, caches - sum_bytes(chunk))


def test_a_smaller_chunk_leaves_a_recorded_step_less_room() -> None:
    """Of a budget that is lowered, a shorter chunk's room is not given to anything else."""
    plan = make_plan(
        MANIFEST, engine="torch-cuda", budget_bytes=2**31, baseline_bytes=0, tokens=10_000,
        chunk_tokens=16,
    )  # fmt: skip
    least = replanned(plan, MANIFEST, plan.total_bytes)
    assert least.fits
    for budget in range(plan.smallest_budget_bytes, plan.total_bytes + 64 * MIB, 16 * MIB):
        again = replanned(plan, MANIFEST, budget)
        chunk = tuple(item for item in again.items if item.name.startswith(("activ", "alloc")))
        held = sum_bytes(chunk) + bytes_of(again.items, NAME)
        assert held >= plan.capacity * ENTRY_BYTES
