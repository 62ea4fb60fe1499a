"""Is a kernel right? Adversarial cases per operator, float64 answers, and the judge that holds a result to them.

Needs torch and nothing of the compiler, so that a machine that only runs kernels can check them too::

    for case in cases("fmha", {"D": 128}, {"causal": True}, config=config, device="cuda"):
        verdict = run_case(kernel, manifest.contract, case)
"""

from dsv4.generator.verify.case import Case, Verdict
from dsv4.generator.verify.registry import cases, judge, operators, workload
from dsv4.generator.verify.run import run_case

__all__ = ["Case", "Verdict", "cases", "judge", "operators", "run_case", "workload"]
