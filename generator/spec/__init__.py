"""The spec: schema, strict loader, planning."""

from dsv4.generator.resources.refused import Refused
from dsv4.generator.spec.chip_schema import ArchSpec, ModelSpec
from dsv4.generator.spec.errors import SpecError
from dsv4.generator.spec.load import list_archs, list_models, list_ops, load_arch, load_model, load_op, read_op
from dsv4.generator.spec.op_schema import OpSpec
from dsv4.generator.spec.plan import Planner, default_plans, plan, work
from dsv4.generator.spec.space import space

__all__ = [
    "ArchSpec",
    "ModelSpec",
    "OpSpec",
    "Planner",
    "Refused",
    "SpecError",
    "default_plans",
    "list_archs",
    "list_models",
    "list_ops",
    "load_arch",
    "load_model",
    "load_op",
    "plan",
    "read_op",
    "space",
    "work",
]
