"""From a checkpoint to a bundle: weights, graphs, tokenizer, manifest; checked before it appears.

report = export_bundle("mamba-130m", "mamba-130m-bundle", weights="bfloat16")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from functools import partial
from math import prod
from pathlib import Path

import onnx
import torch

from longspan.bundle import (
    BYTES,
    GENAI_CONFIG,
    GRAPHS,
    TOKENIZER,
    WEIGHTS,
    Manifest,
    Prompt,
    file_sha256,
    open_bundle,
    write_manifest,
)
from longspan.errors import BadInput, VerificationFailed
from longspan.export.activations import chunk_bytes
from longspan.export.anchors import AnchorReport, AnchorRequest, add_anchors
from longspan.export.calibrate import Calibration, calibration_text, measure_cost
from longspan.export.cpu_scan import scan_on_cpu
from longspan.export.folder import check_free, new_folder
from longspan.export.from_bundle import open_source, prompt_of
from longspan.export.genai import genai_config
from longspan.export.graph import decoder_graph
from longspan.export.quantize import Packed, QuantizedWeights
from longspan.export.report import ExportReport
from longspan.export.rounding import round_for_text
from longspan.export.scans import expand_scans
from longspan.export.tokenizer import choose_tokenizer, tokenizer_content
from longspan.export.weight_options import WeightOptions
from longspan.export.weights import ByteRange, write_safetensors
from longspan.models.checkpoint import Checkpoint
from longspan.runtime.verify import Check, nonfinite_names, verify_bundle
from longspan.sizes import format_bytes
from longspan.tensors import DType
from longspan.version import __version__

Progress = Callable[[str], None]


def export_bundle(
    checkpoint: str | Path,
    bundle: str | Path,
    *,
    weights: str | None = None,
    block: int | None = None,
    symmetric: bool = True,
    quantize_embedding: bool | None = None,
    quantize_head: bool | None = None,
    calibrate: str | Path | None = None,
    nearest: bool = False,
    tokenizer: str | Path | None = None,
    split_digits: bool = False,
    config: str | Path | None = None,
    prompt_template: str | None = None,
    stop: tuple[str, ...] | None = None,
    anchors: str | None = None,
    positions: str | None = None,
    tokens: str | int | None = None,
    budget: str | int | None = None,
    force: bool = False,
    allow_nonfinite: bool = False,
    on_progress: Progress | None = None,
) -> ExportReport:
    """Write the bundle of a checkpoint, verified on this machine's CPU.

    Args:
        checkpoint: a folder, or a file of weights with its config beside it; or a bundle of
            floating point.
        bundle: the folder to write; it appears only when it is complete.
        weights: ``"float32"``, ``"float16"`` or ``"bfloat16"``; None keeps the checkpoint's.
            ``"int8"`` and ``"int4"`` quantise the matrices; all else stays in the checkpoint's 16
            bits, or bfloat16.
        block: of quantised weights: 32 (None), 64 or 128 of a row share a scale.
        symmetric: of quantised weights: False stores a zero point a block, too.
        quantize_embedding, quantize_head: of quantised weights: False leaves this one in 16 bits;
            where the two are one matrix, either says it for both.
        calibrate: of quantised weights: a UTF-8 text on which the report tells their cost. 4 bits
            are rounded (GPTQ) for its first two thirds, at most 16,384 tokens, where these are
            4,096 or more; what follows tells.
        nearest: of quantised weights: round to the nearest all the same.
        tokenizer: a ``tokenizer.json``, or ``"bytes"`` for a model whose tokens are bytes, id =
            value (a file of that name is ``"./bytes"``). None takes the file in the checkpoint's
            folder; where there is none, bytes if the family's tokens are.
        split_digits: change the tokenizer so that every digit is a token of its own.
        config: the checkpoint's config; None takes the ``config.json`` beside its weights.
        prompt_template: how a question is put, with ``{question}``; None for the usual way, or the
            bundle's.
        stop: texts that end an answer; None for the end of a line, or the
            bundle's.
        anchors: what stands for a segment that is closed, whose keys are then dropped (AnLLM):
            ``"ac"``, ``"ep"``, ``"ids=1,2,3"``, ``"every=N"`` or ``"every=auto"``; see
            `longspan.export.anchors`. None to keep every token, as the checkpoint does.
        positions: with anchors: ``"absolute"`` (None), or ``"compressed"`` as in the authors' runs.
        tokens: for ``every=auto``: length of a document, as ``"256K"``.
        budget: for ``every=auto``: bytes that the process may hold that reads it on this machine.
        force: replace what is at `bundle`, once the new bundle is complete.
        allow_nonfinite: take weights with NaN or infinities as they are. The manifest names them,
            and verification counts equal ones as equal.
        on_progress: called with a line of text before each step.

    Raises:
        BadCheckpoint: the checkpoint cannot be read, is not supported, or has a weight that is
            not finite.
        BadInput: an option cannot be used, or `bundle` holds something already.
        DoesNotFit: with no interval of anchors does the document fit the budget.
        VerificationFailed: the engines disagree beyond the tolerance; nothing is written.
    """
    asked = WeightOptions(
        weights=weights,
        block=block,
        symmetric=symmetric,
        quantize_embedding=quantize_embedding,
        quantize_head=quantize_head,
        calibrate=calibrate,
        nearest=nearest,
    )
    asked.check()
    prompt = _prompt(prompt_template, stop, prompt_of(checkpoint))
    progress = on_progress or _no_progress
    check_free(Path(bundle), force=force)
    opened = asked.apply(open_source(checkpoint, config))
    dtype = asked.dtype(opened)
    vocabulary = choose_tokenizer(opened, tokenizer)
    content = tokenizer_content(vocabulary, checkpoint=opened.path, split=split_digits)
    opened, anchor_report = add_anchors(
        opened,
        AnchorRequest(anchors=anchors, positions=positions, tokens=tokens, budget=budget),
        tokenizer=content,
        describe=partial(_described, dtype=dtype),
    )
    stored, text = opened.config.quantization, None
    if calibrate is not None and stored is not None:
        text = calibration_text(calibrate, content, byte_tokens=vocabulary == BYTES, fit=asked.fits)
    with new_folder(Path(bundle), force=force) as folder:
        specs = opened.specs(dtype)
        weight_bytes = sum(spec.nbytes for spec in specs)
        stored_as = weights if stored else dtype
        weights_read = _WeightsRead(opened, allow_nonfinite=allow_nonfinite)
        rounded: Mapping[str, Packed] = {}
        if text is not None and len(text.fitted):
            progress(f"rounding to {weights} for {len(text.fitted):,} tokens of {text.name}")
            fitted = torch.from_numpy(text.fitted)
            rounded = round_for_text(opened, fitted, dtype=dtype, read=weights_read)
        progress(f"writing {format_bytes(weight_bytes)} of {stored_as} weights ({opened.family})")
        read = QuantizedWeights(weights_read, opened, dtype, rounded)
        ranges = write_safetensors(folder / WEIGHTS, specs, read)
        calibration = None
        if text is not None:
            count = len(text.measured)
            progress(f"reading {count:,} tokens of {text.name}, unquantised and quantised")
            calibration = measure_cost(opened, text, dtype=dtype, weights=folder / WEIGHTS)
        _write_graphs(folder, opened, dtype, ranges, progress)
        if content is not None:
            (folder / TOKENIZER).write_bytes(content)
        manifest = _manifest(
            folder,
            opened,
            dtype,
            prompt,
            byte_tokens=vocabulary == BYTES,
            nonfinite=weights_read.nonfinite,
            anchors=anchor_report,
            calibration=calibration,
        )
        write_manifest(folder, manifest)
        progress("verifying: chunks against one pass, ONNX Runtime against torch")
        checks = _verified(folder)
        write_manifest(folder, _with_checks(manifest, checks))
    return ExportReport(
        bundle=Path(bundle),
        family=opened.family,
        parameters=manifest.parameters,
        weight_bytes=manifest.weight_bytes,
        state_bytes=manifest.state_bytes,
        cache_entry_bytes=manifest.cache_entry_bytes,
        checks=checks,
        anchors=anchor_report,
        quantization=opened.config.quantization,
        calibration=calibration,
    )


class _WeightsRead:
    """Reads weights by name, and remembers which hold NaN or infinities, where that is allowed."""

    def __init__(self, checkpoint: Checkpoint, *, allow_nonfinite: bool) -> None:
        self._checkpoint = checkpoint
        self._allow = allow_nonfinite
        self.nonfinite: set[str] = set()

    def __call__(self, name: str) -> torch.Tensor:
        tensor = self._checkpoint.read(name, allow_nonfinite=self._allow)
        if self._allow and not bool(torch.isfinite(tensor).all()):
            self.nonfinite.add(name)
        return tensor


def _no_progress(line: str) -> None:
    del line


def _prompt(template: str | None, stop: tuple[str, ...] | None, usual: Prompt) -> Prompt:
    if template is not None and "{question}" not in template:
        raise BadInput(
            f"The template {template!r} was asked for; it must contain {{question}}, where the "
            "question goes. Add it."
        )
    return Prompt(
        template=usual.template if template is None else template,
        stop=usual.stop if stop is None else stop,
    )


def _write_graphs(
    folder: Path,
    checkpoint: Checkpoint,
    dtype: DType,
    ranges: Mapping[str, ByteRange],
    progress: Progress,
) -> None:
    config = checkpoint.config
    progress(f"tracing {GRAPHS['cuda']}")
    on_cuda = decoder_graph(config, dtype=dtype, compute=dtype, ranges=ranges)
    _write_graph(folder / GRAPHS["cuda"], expand_scans(on_cuda, device="cuda"))
    progress(f"tracing {GRAPHS['cpu']}")
    wide = (
        on_cuda
        if dtype == "float32"
        else decoder_graph(config, dtype=dtype, compute="float32", ranges=ranges)
    )
    _write_graph(folder / GRAPHS["cpu"], scan_on_cpu(expand_scans(wide, device="cpu")))


def _write_graph(path: Path, model: onnx.ModelProto) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))


def _manifest(
    folder: Path,
    checkpoint: Checkpoint,
    dtype: DType,
    prompt: Prompt,
    *,
    byte_tokens: bool,
    nonfinite: Collection[str],
    anchors: AnchorReport | None,
    calibration: Calibration | None,
) -> Manifest:
    genai = genai_config(checkpoint.config, eos=checkpoint.eos)
    if genai is not None:
        (folder / GENAI_CONFIG).write_text(json.dumps(genai, indent=2) + "\n", encoding="utf-8")
    files = sorted(path.name for path in folder.iterdir())
    return replace(
        _described(checkpoint, dtype),
        prompt=prompt,
        tokenizer=BYTES if byte_tokens else None,
        sentence_token=None if anchors is None else anchors.sentence_token,
        eos=checkpoint.eos,
        files={name: file_sha256(folder / name) for name in files},
        source={
            "checkpoint": checkpoint.path.resolve().name,
            "longspan": __version__,
            **({"nonfinite": sorted(nonfinite)} if nonfinite else {}),
            **({} if anchors is None else {"anchors": anchors.to_json()}),
            **({} if calibration is None else {"calibration": calibration.to_json()}),
        },
    )


def _described(checkpoint: Checkpoint, dtype: DType) -> Manifest:
    """What a manifest says of the model alone."""
    config, specs = checkpoint.config, checkpoint.specs(dtype)
    plain = replace(checkpoint, config=replace(config, quantization=None))
    return Manifest(
        config=config,
        dtype=dtype,
        parameters=sum(prod(spec.shape) for spec in plain.specs(dtype)),
        weight_bytes=sum(spec.nbytes for spec in specs),
        state=config.state_layout(dtype),
        chunk_bytes=chunk_bytes(config, dtype),
        files={},
        source={},
    )


def _verified(folder: Path) -> tuple[Check, ...]:
    bundle = open_bundle(folder)
    checks = verify_bundle(bundle, device="cpu")
    for check in checks:
        if not check.passed:
            raise VerificationFailed(
                f"The bundle was checked before it was written, and {check.name!r} differs by "
                f"{check.max_error:.2g} of the largest value; the tolerance is "
                f"{check.tolerance:.2g}. Nothing was written. {_after_failure(bundle.manifest)}"
            )
    return checks


def _after_failure(manifest: Manifest) -> str:
    """What to do when a check fails."""
    if manifest.nonfinite:
        return (
            f"NaN or infinities, in {nonfinite_names(manifest)}, spread to other results when the "
            "text is cut otherwise or another engine computes. Use a checkpoint without them."
        )
    if manifest.quantization is not None and manifest.quantization.bits == 8:
        return (
            "ONNX Runtime on CPUs multiplies 8 bits with activations that it rounds to 8 bits, "
            "too; 4 bits it multiplies with activations as they are. Export with weights='int4' or "
            "'bfloat16' (--weights int4, bfloat16)."
        )
    return (
        "Export with weights='float32' (--weights float32); if that fails too, please report the "
        "model's config."
    )


def _with_checks(manifest: Manifest, checks: tuple[Check, ...]) -> Manifest:
    """The manifest with the checks in its source."""
    rows = [asdict(check) for check in checks]
    return replace(manifest, source={**manifest.source, "checks": rows})
