"""`dsv4-tune`: find the fastest configuration of a kernel on the GPU that will run it."""

from __future__ import annotations

import sys

import typer

from dsv4.generator.cli import run
from dsv4.tuner.commands.compile import compile_candidates
from dsv4.tuner.commands.coverage import print_coverage
from dsv4.tuner.commands.exchange import diff_entries, export_entries, import_file, merge_files, print_checksum
from dsv4.tuner.commands.model import tune_whole_model
from dsv4.tuner.commands.offline import cover_shapes, replay_study
from dsv4.tuner.commands.pack import measure_candidates, pack_kernels
from dsv4.tuner.commands.plan import plan_search
from dsv4.tuner.commands.predict import predict_configurations
from dsv4.tuner.commands.report import explain_entry, report_study
from dsv4.tuner.commands.sweep import sweep_configurations

EPILOG = """Examples:

  dsv4-tune plan --op fmha --arch sm_90a --dims D=128 --limit 10     what would be tried, what is refused and why

  dsv4-tune sweep --op rms_norm --arch sm_90a --budget 10m           tune on this machine's GPU

  dsv4-tune sweep --op fmha --arch sm_90a --budget 40 --shape B=1,Sq=1,Sk=8192 --bucket Sq=1:16

  dsv4-tune compile --op fmha --arch sm_90a --limit 40               compile here, then on a GPU machine
  dsv4-tune sweep --op fmha --arch sm_90a --budget 40 --prebuilt     that has this cache and no compiler
"""

app = typer.Typer(
    name="dsv4-tune",
    help="Find the fastest configuration of a kernel.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("plan")(plan_search)
app.command("predict")(predict_configurations)
app.command("compile")(compile_candidates)
app.command("sweep")(sweep_configurations)
app.command("model")(tune_whole_model)
app.command("report")(report_study)
app.command("explain")(explain_entry)
app.command("coverage")(print_coverage)
app.command("cover")(cover_shapes)
app.command("replay")(replay_study)
app.command("pack")(pack_kernels)
app.command("measure")(measure_candidates)
app.command("import")(import_file)
app.command("export")(export_entries)
app.command("merge")(merge_files)
app.command("diff")(diff_entries)
app.command("checksum")(print_checksum)


@app.callback()
def options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Find the fastest configuration of a kernel."""


def main() -> None:
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # accepted anywhere on the line
        arguments = ["--debug", *(each for each in arguments if each != "--debug")]
    sys.exit(run(app, arguments))
