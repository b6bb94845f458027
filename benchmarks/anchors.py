"""What anchors save: the cache at 256K tokens, by arithmetic and by reading; into measurements.md.

    python benchmarks/anchors.py --every 128 --tokens 8K,64K,256K --write docs/measurements.md

The first table counts the cache of Llama-2-7B's layers from their config. The second reads random
tokens with a Llama of one layer and random weights, exported with and without anchors: the cache's
bytes are those of the state that a `.span` file would hold. Each length is read in a process of its
own; what keeps every token is read up to `--full`, since its time grows with the square.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from report import command_line, markdown_table, versions_line, write_section

from longspan.models.config import CacheUse, FullAttentionConfig, ModelConfig, with_anchors
from longspan.runtime.doctor import examine
from longspan.runtime.measure import measure_bundle
from longspan.sizes import format_bytes, parse_tokens

Table = list[tuple[str, ...]]
LLAMA_2_7B = ModelConfig(
    family="llama",
    vocab_size=32002,
    d_model=4096,
    layers=(FullAttentionConfig(n_heads=32, n_kv_heads=32, head_dim=128),) * 32,
)
WIDTH, D_FF, VOCABULARY, HEADS = 64, 128, 512, 4
TINY = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": D_FF, "num_hidden_layers": 1,
    "num_attention_heads": HEADS, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
}  # fmt: skip


def write_llama(folder: Path) -> None:
    """A Llama of one layer with random weights, as transformers saves it."""
    # Not above: a process that reads imports this file, and torch would be among what it holds.
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    shapes = {"model.embed_tokens": (VOCABULARY, WIDTH)}
    for name in ("q", "k", "v", "o"):
        shapes[f"model.layers.0.self_attn.{name}_proj"] = (WIDTH, WIDTH)
    for name in ("gate", "up"):
        shapes[f"model.layers.0.mlp.{name}_proj"] = (D_FF, WIDTH)
    shapes["model.layers.0.mlp.down_proj"] = (WIDTH, D_FF)
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"{name}.weight": torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        for name, shape in shapes.items()
    }
    for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
        weights[f"model.{name}.weight"] = torch.ones(WIDTH)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(TINY), encoding="utf-8")


def computed(every: int, lengths: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Rows of Llama-2-7B's cache in bfloat16, at its fullest on the way, with and without."""
    full, anchored = LLAMA_2_7B, with_anchors(LLAMA_2_7B, anchor_every=every)
    for tokens in lengths:
        entries, cached = zip(
            *(most_cached(each, tokens) for each in (full, anchored)), strict=True
        )
        yield (
            f"{tokens:,}",
            format_bytes(cached[0]),
            f"{entries[1]:,}",
            format_bytes(cached[1]),
            f"{cached[0] / cached[1]:.0f}",
        )


def most_cached(config: ModelConfig, tokens: int) -> tuple[int, int]:
    """Entries of a cache at their most, and bytes of all caches then."""
    entries = CacheUse.of(config).entries_after(tokens)
    assert entries is not None, "no ids are anchors here"
    return entries, sum(spec.nbytes for spec in config.state_layout("bfloat16", entries))


def rows(bundle: Path, options: argparse.Namespace, what: str, lengths: Sequence[int]) -> Table:
    """Readings for people, each of random tokens in a process of its own, and asked once."""
    found = measure_bundle(bundle, lengths, budget=options.budget, device=options.device)
    return [
        (
            what,
            f"{run.tokens:,}",
            format_bytes(run.state_bytes),
            f"{run.peak_bytes / 2**20:,.1f}",
            f"{run.planned_bytes / 2**20:,.1f}",
            f"{run.prefill_seconds:.1f}",
        )
        for run in found.runs
    ]


def main() -> None:
    """Compute, read, print, and write where asked."""
    from longspan.export import export_bundle

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=128)
    parser.add_argument("--tokens", default="8K,64K,256K")
    parser.add_argument("--full", default="8K", help="lengths that are read without anchors")
    parser.add_argument("--budget", default="256MiB")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--write", type=Path, metavar="FILE.md")
    options = parser.parse_args()
    lengths, full = (
        [parse_tokens(length) for length in text.split(",")]
        for text in (options.tokens, options.full)
    )
    found: Table = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_llama(checkpoint)
        for what, anchors, sizes in (
            ("every token", None, full),
            (f"every {options.every}", f"every={options.every}", lengths),
        ):
            bundle = Path(folder) / what
            export_bundle(checkpoint, bundle, anchors=anchors)
            found += rows(bundle, options, what, sizes)
    report = examine(device=options.device, backend="auto")
    by_arithmetic = (
        "By arithmetic: the cache of Llama-2-7B's 32 layers in bfloat16, whole, and with an anchor "
        f"every {options.every} tokens, at its fullest on the way."
    )
    by_reading = (
        f"By reading: a Llama of one layer of width {WIDTH} with random float32 weights, budget "
        f"{options.budget} for the whole process; {versions_line(report.versions)}. The state is "
        "what a `.span` file holds after the last token; a question is read after it, too."
    )
    saved = ["tokens", "every token", "entries with anchors", "with anchors", "times less"]
    measured = ["keys kept", "tokens", "state", "peak MiB", "planned MiB", "read s"]
    lines = [
        f"### What anchors save: {report.device.name}, {report.engine}",
        "",
        f"`{command_line('anchors.py')}`",
        "",
        by_arithmetic,
        "",
        *markdown_table(saved, computed(options.every, lengths)),
        "",
        by_reading,
        "",
        *markdown_table(measured, found),
    ]
    text = "\n".join(lines)
    print(text)
    if options.write is not None:
        write_section(options.write, f"Anchors: {report.engine} on {report.device.name}", text)


if __name__ == "__main__":
    main()
