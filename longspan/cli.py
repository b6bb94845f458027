"""The command line. A command parses, calls one library function, and prints.

Exit status: 0 done; 1 refused with a message; 2 usage; 3 does not fit the budget.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from longspan import cli_options as opt
from longspan import render
from longspan.builtin import named_bundle
from longspan.cli_ask import ask
from longspan.errors import DoesNotFit, LongspanError
from longspan.sizes import parse_tokens
from longspan.version import __version__

app = typer.Typer(
    name="longspan",
    help="Read any length of text in a fixed amount of memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longspan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Read any length of text in a fixed amount of memory."""


@app.command()
def demo(
    task: opt.TaskOption = opt.TaskChoice.PASSKEY,
    document: opt.DocumentFile = None,
    tokens: opt.About = None,
    depth: opt.Depth = None,
    seed: opt.Seed = None,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of the whole process.")
    ] = None,
    bundle: opt.DemoBundle = None,
    device: opt.DeviceOption = opt.Device.CPU,
    backend: opt.BackendOption = opt.BackendChoice.AUTO,
    json: opt.Json = False,
) -> None:
    """Hide random facts in a long document, read it, and ask about them."""
    from longspan.runtime.demo import describe_start, run_demo

    with render.reading_progress(quiet=json) as show:
        result = run_demo(
            task=task.value,
            document=document,
            tokens=None if tokens is None else parse_tokens(tokens),
            depth=depth,
            seed=seed,
            budget=budget,
            bundle=None if bundle is None else named_bundle(bundle),
            device=device.value,
            backend=backend.value,
            on_start=None if json else lambda *facts: render.err().print(describe_start(*facts)),
            on_progress=show,
        )
    render.print_result(result, json=json)
    if not result.correct:
        raise typer.Exit(1)


@app.command()
def export(
    checkpoint: opt.CheckpointArgument,
    bundle: opt.NewBundle,
    weights: opt.Weights = None,
    block: opt.Block = None,
    asymmetric: opt.Asymmetric = False,
    quantize_embedding: opt.QuantizeEmbedding = None,
    quantize_head: opt.QuantizeHead = None,
    calibrate: opt.Calibrate = None,
    nearest: opt.Nearest = False,
    tokenizer: opt.TokenizerFile = None,
    split_digits: opt.SplitDigits = False,
    config: opt.ConfigFile = None,
    template: opt.Template = None,
    anchors: opt.Anchors = None,
    positions: opt.Positions = None,
    tokens: opt.AutoTokens = None,
    budget: opt.AutoBudget = None,
    force: opt.Force = False,
    allow_nonfinite: opt.AllowNonfinite = False,
    json: opt.Json = False,
) -> None:
    """Turn a trained checkpoint into a bundle, and verify it."""
    from longspan.export import export_bundle

    report = export_bundle(
        named_bundle(checkpoint),
        bundle,
        weights=weights,
        block=block,
        symmetric=not asymmetric,
        quantize_embedding=quantize_embedding,
        quantize_head=quantize_head,
        calibrate=calibrate,
        nearest=nearest,
        tokenizer=tokenizer,
        split_digits=split_digits,
        config=config,
        prompt_template=template,
        anchors=anchors,
        positions=positions,
        tokens=tokens,
        budget=budget,
        force=force,
        allow_nonfinite=allow_nonfinite,
        on_progress=None if json else render.notice,
    )
    render.print_result(report, json=json)


@app.command()
def info(
    path: opt.AnyPath,
    json: opt.Json = False,
) -> None:
    """Tell what a checkpoint, a bundle or a .span file is."""
    from longspan.info import describe

    facts = describe(named_bundle(path))
    if json:
        render.print_json(facts)
    else:
        render.print_table(("what", "value"), render.fact_rows(facts))


@app.command()
def plan(
    bundle: opt.BundleArgument,
    budget: opt.BudgetOption = None,
    tokens: opt.Length = None,
    draft: opt.DraftBundle = None,
    fit: opt.Fit = False,
    explain: opt.Explain = False,
    device: opt.DeviceOption = opt.Device.AUTO,
    backend: opt.BackendOption = opt.BackendChoice.AUTO,
    cache: opt.CacheOption = None,
    json: opt.Json = False,
) -> None:
    """Divide the budget, item by item, without loading the model."""
    from longspan.render_plan import print_plan
    from longspan.runtime.runtime import plan_bundle

    made = plan_bundle(
        named_bundle(bundle),
        budget=budget,
        tokens=None if tokens is None else parse_tokens(tokens),
        device=device.value,
        backend=backend.value,
        cache_dtype=None if cache is None else cache.value,
        draft=None if draft is None else named_bundle(draft),
    )
    if json:
        render.print_json(made.to_json(fit=fit))
    else:
        print_plan(made, explain=explain, fit=fit)
    if not made.fits:
        raise typer.Exit(DoesNotFit.exit_code)


@app.command()
def read(
    bundle: opt.BundleArgument,
    documents: opt.Documents,
    memory: opt.NewMemory,
    budget: opt.BudgetOption = None,
    device: opt.DeviceOption = opt.Device.AUTO,
    backend: opt.BackendOption = opt.BackendChoice.AUTO,
    cache: opt.CacheOption = None,
    json: opt.Json = False,
) -> None:
    """Read documents and keep what was read as a small file. Interrupted, it resumes."""
    from longspan.runtime.checkpoint import partial_path
    from longspan.runtime.runtime import load_for

    try:
        with (
            load_for(
                named_bundle(bundle),
                document=documents,
                budget=budget,
                device=device.value,
                backend=backend.value,
                cache_dtype=None if cache is None else cache.value,
            ) as runtime,
            render.reading_progress(quiet=json) as show,
        ):
            result = runtime.read_to(memory, documents, on_progress=show, on_notice=render.notice)
    except KeyboardInterrupt:
        kept = f"What was read is kept beside {memory}; the same command goes on from it."
        render.notice(
            f"Stopped. {kept if partial_path(memory).exists() else 'Nothing was read yet.'}"
        )
        raise typer.Exit(130) from None
    render.print_result(result, json=json)


app.command()(ask)


@app.command()
def measure(
    bundle: opt.BundleArgument,
    budget: opt.Budgets = None,
    tokens: opt.Lengths = "8K,64K",
    plot: opt.Plot = None,
    against: opt.Against = None,
    checkpoint: opt.AgainstCheckpoint = None,
    device: opt.DeviceOption = opt.Device.AUTO,
    backend: opt.BackendOption = opt.BackendChoice.AUTO,
    json: opt.Json = False,
) -> None:
    """Measure memory and speed against length and budget, a fresh process for each."""
    from longspan.render_measure import print_measurement
    from longspan.runtime.against import measure_against
    from longspan.runtime.measure import measure_bundle
    from longspan.runtime.measure_plot import draw, require_drawable

    if plot is not None:
        require_drawable(plot)
    lengths = [parse_tokens(each) for each in tokens.split(",")]
    say = None if json else render.notice
    other = measure_against(
        against, checkpoint, lengths, device=device.value, backend=backend.value, on_start=say
    )
    measurement = measure_bundle(
        named_bundle(bundle),
        lengths,
        budget=[each for given in budget for each in given.split(",")] if budget else None,
        device=device.value,
        backend=backend.value,
        on_start=say,
    )
    if plot is not None:
        draw(measurement, plot)
    print_measurement(measurement, other, json=json)


@app.command()
def verify(
    bundle: opt.BundleArgument,
    device: opt.DeviceOption = opt.Device.CPU,
    json: opt.Json = False,
) -> None:
    """Check a bundle's files, chunk-invariance, and torch against ONNX Runtime, on this machine."""
    from longspan.bundle import open_bundle
    from longspan.runtime.backends.choice import choose_engine
    from longspan.runtime.verify import check_files, verify_bundle

    where = choose_engine(device=device.value, backend="auto").device
    opened = open_bundle(named_bundle(bundle))
    check_files(opened)
    checks = verify_bundle(opened, device=where)
    passed = all(check.passed for check in checks)
    if json:
        render.print_json({"passed": passed, "checks": checks})
    else:
        for check in checks:
            render.out().print(check.text(), markup=False)
    if not passed:
        raise typer.Exit(1)


@app.command()
def doctor(
    device: opt.DeviceOption = opt.Device.AUTO,
    backend: opt.BackendOption = opt.BackendChoice.AUTO,
    json: opt.Json = False,
) -> None:
    """Show the device, versions, and what runs each operation and why."""
    from longspan.runtime.doctor import examine

    report = examine(device=device.value, backend=backend.value)
    render.print_result(report, json=json)
    if json:
        return
    render.print_table(
        ("operation", "choice", "reason"), [(op.op, op.choice, op.reason) for op in report.ops]
    )
    render.print_table(("package", "version"), report.versions.items())


def main() -> None:
    """Run the command line; a person's mistake ends in a message and a status."""
    render.prepare_streams()
    try:
        app()
    except LongspanError as error:
        _refuse(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        # What nobody looked at beforehand: a full disk under the output, a file without permission.
        if error.filename is None:
            render.notice(f"The output cannot be written: {error.strerror}.", style="red")
        else:
            _refuse(f"{error.filename} cannot be used: {error.strerror}. Check it, and try again.")
        sys.exit(1)


def _refuse(message: str) -> None:
    if "--json" in sys.argv:
        render.print_json({"error": message})
    render.notice(message, style="red")
