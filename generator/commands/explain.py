"""`dsv4-gen explain`: the budget of a kernel line by line, or why it is refused."""

from __future__ import annotations

from typing import Annotated

import typer

from dsv4.generator.commands import select
from dsv4.generator.commands.listing import pairs
from dsv4.generator.console import CheckFailed, UsageError, err, print_json
from dsv4.generator.resources import Refused
from dsv4.generator.spec import list_ops


def explain_kernel(
    op: Annotated[str, typer.Argument(help="The operator.")],
    arch: select.Arch = None,
    model: select.Model = None,
    dims: select.Dims = [],  # noqa: B006 — typer's way to say "repeatable, none by default"; never changed
    variant: select.Variant = [],  # noqa: B006
    config: select.Set = [],  # noqa: B006
    json: select.Json = False,
) -> None:
    """Print what a configuration takes of its chip, line by line, or why it is refused.

    Example: dsv4-gen explain fmha --arch sm_100a --dims D=128 --set kv_stage=4
    """
    if op not in list_ops():
        raise UsageError(f"OP: found '{op}'; valid: {', '.join(list_ops())}")
    selection = select.Selection(op, arch, model, dims, variant, config)
    answers = []
    for each in selection.archs:
        try:
            plan = selection.single(each)
        except Refused as refused:
            answers.append({"op": op, "arch": each, "fits": False, "reasons": list(refused.reasons)})
            if not json:
                print(f"{op} on {each}: refused")
                print("".join(f"  {reason}\n" for reason in refused.reasons), end="")
            continue
        lines = plan.budget.table()
        answers.append({**plan.identity, "fits": True, "budget": lines, "predicted": plan.predicted.model_dump()})
        if not json:
            print(f"{op} on {each}: {pairs(plan.dims)}; {pairs(plan.variant)}; {pairs(plan.config)}")
            print("".join(f"  {line}\n" for line in lines), end="")
    if json:
        print_json({"kernels": answers})
    refused_archs = [str(answer["arch"]) for answer in answers if not answer["fits"]]
    if refused_archs:
        err.print(f"does not fit: {', '.join(refused_archs)}")
        raise CheckFailed(f"{op} is refused on {', '.join(refused_archs)}")
