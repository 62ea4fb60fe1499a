"""The resource model: what a configuration takes, before anything is compiled."""

from dsv4.generator.resources.budget import Budget, Role, SmemRegion, TmaBox, TmemRegion
from dsv4.generator.resources.limits import Limits
from dsv4.generator.resources.place import place
from dsv4.generator.resources.refused import Refused
from dsv4.generator.resources.request import KernelRequest, RoleRequest, SmemRequest, TmaRequest, TmemRequest

__all__ = [
    "Budget",
    "KernelRequest",
    "Limits",
    "Refused",
    "Role",
    "RoleRequest",
    "SmemRegion",
    "SmemRequest",
    "TmaBox",
    "TmaRequest",
    "TmemRegion",
    "TmemRequest",
    "place",
]
