"""Barriers, fences, mbarriers, election, and what controls the launch."""

from __future__ import annotations

import re

from dsv4.emulator.lower.context import ABSENT, Lowering
from dsv4.emulator.lower.rules import rule

RELAXED, ACQUIRE, RELEASE, REMOTE = 2, 4, 8, 32
SCOPES = {"cta": 0, "cluster": 1, "gpu": 2, "gl": 2, "sys": 3}
_SPACE = r"(?P<space>\.shared(?:::cta|::cluster)?)?"
_ORDER = r"(?:\.(?P<order>release|relaxed|acquire))?(?:\.(?:cta|cluster))?"


@rule(r"elect\.sync")
def _elect(low: Lowering, match: re.Match[str]) -> None:
    d, members = low.operands(2)
    register, predicate = low.pair(d)
    low.emit("elect", [low.dst(register), low.dst_predicate(predicate), low.src(members)])


@rule(r"bar\.warp\.sync")
def _warp_sync(low: Lowering, match: re.Match[str]) -> None:
    low.emit("bar_warp_sync", [low.src(low.operands(1)[0])])


@rule(r"(?:bar(?:\.cta)?\.(sync|arrive)|barrier(?:\.cta)?\.(sync|arrive)(\.aligned)?)")
def _named(low: Lowering, match: re.Match[str]) -> None:
    name = match[1] or match[2]
    operands = low.operands(1, 2) if name == "sync" else low.operands(2)
    slots = [low.src(operands[0]), low.src(operands[1]) if len(operands) == 2 else ABSENT]
    low.emit(f"bar_{name}", slots, converged=bool(match[1] or match[3]))


@rule(r"(?:bar(?:\.cta)?|barrier(?:\.cta)?)\.red\.(?:(popc)(?:\.aligned)?\.u32|(and|or)(?:\.aligned)?\.pred)")
def _reduce(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(3, 4)
    slot, negated = low.predicate(operands[-1])
    d = low.dst(operands[0]) if match[1] else low.dst_predicate(operands[0])
    threads = low.src(operands[2]) if len(operands) == 4 else ABSENT
    kind = 0 if match[1] else ("and", "or").index(match[2]) + 1
    low.emit("bar_red", [d, low.src(operands[1]), threads, slot], kind, negated, converged=True)


@rule(r"barrier\.cluster\.(?:arrive(?:\.(release|relaxed))?|wait(?:\.acquire)?)(\.aligned)?")
def _cluster(low: Lowering, match: re.Match[str]) -> None:
    low.operands(0)
    if ".arrive" in low.ins.opcode:
        low.emit("cluster_arrive", [], RELAXED if match[1] == "relaxed" else RELEASE, converged=bool(match[2]))
    else:
        low.emit("cluster_wait", [], converged=bool(match[2]))


@rule(r"(?:fence(?:\.(?:sc|acq_rel|acquire|release))?\.(cta|cluster|gpu|sys)|membar\.(cta|gl|sys))")
def _fence(low: Lowering, match: re.Match[str]) -> None:
    low.operands(0)
    low.emit("fence", [], SCOPES[match[1] or match[2]])


@rule(r"fence\.mbarrier_init\.release\.cluster")
def _fence_init(low: Lowering, match: re.Match[str]) -> None:
    low.emit("fence_mbarrier_init", [])


@rule(r"fence\.proxy\.async(?:\.(shared::cta|shared::cluster|global))?")
def _fence_async(low: Lowering, match: re.Match[str]) -> None:
    low.emit("fence_proxy_async", [], 0 if match[1] is None else 2 if match[1] == "global" else 1)


@rule(r"fence\.proxy\.(?:tensormap::generic\.(?P<order>acquire|release)\.(?:cta|cluster|gpu|sys)|alias)")
def _fence_tensormap(low: Lowering, match: re.Match[str]) -> None:
    if match["order"] == "acquire":
        slot, offset, _ = low.address(low.operands(2)[0], "generic")
        low.emit("tensormap_fence", [slot], 1, offset)
    else:
        low.emit("tensormap_fence", [], 2 if match["order"] == "release" else 0)


@rule(rf"mbarrier\.init(?:{_SPACE})\.b64")
def _init(low: Lowering, match: re.Match[str]) -> None:
    a, count = low.operands(2)
    slot, offset = low.narrow_address(a)
    low.emit("mbarrier_init", [slot, low.src(count)], offset)


@rule(rf"mbarrier\.inval(?:{_SPACE})\.b64")
def _inval(low: Lowering, match: re.Match[str]) -> None:
    slot, offset = low.narrow_address(low.operands(1)[0])
    low.emit("mbarrier_inval", [slot], offset)


@rule(rf"mbarrier\.arrive(?P<expect>\.expect_tx)?{_ORDER}{_SPACE}\.b64")
def _arrive(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(3) if match["expect"] else low.operands(2, 3)
    slot, offset = low.narrow_address(operands[1])
    flags = RELAXED if match["order"] == "relaxed" else RELEASE
    flags |= REMOTE if match["space"] == ".shared::cluster" else 0
    count = low.src(operands[2]) if len(operands) == 3 else ABSENT
    name = "mbarrier_arrive_expect_tx" if match["expect"] else "mbarrier_arrive"
    low.emit(name, [low.dst(operands[0], 64), slot, count], offset, flags)


@rule(rf"mbarrier\.(?P<name>expect_tx|complete_tx){_ORDER}{_SPACE}\.b64")
def _transactions(low: Lowering, match: re.Match[str]) -> None:
    a, count = low.operands(2)
    slot, offset = low.narrow_address(a)
    flags = RELAXED | (REMOTE if match["space"] == ".shared::cluster" else 0)
    low.emit(f"mbarrier_{match['name']}", [slot, low.src(count)], offset, flags)


@rule(rf"mbarrier\.(?:test_wait|(?P<timed>try_wait))(?P<parity>\.parity)?{_ORDER}{_SPACE}\.b64")
def _test(low: Lowering, match: re.Match[str]) -> None:
    operands = low.operands(3, 4) if match["timed"] else low.operands(3)
    slot, offset = low.narrow_address(operands[1])
    flags = RELAXED if match["order"] == "relaxed" else ACQUIRE
    d = low.dst_predicate(operands[0])
    if match["parity"]:
        low.emit("mbarrier_test_parity", [d, slot, low.src(operands[2])], offset, flags)
    else:
        low.emit("mbarrier_test_state", [d, slot, low.src(operands[2], 64)], offset, flags)


@rule(r"setmaxnreg\.(inc|dec)\.sync\.aligned\.u32")
def _registers(low: Lowering, match: re.Match[str]) -> None:
    low.emit("setmaxnreg", [], low.integer(low.operands(1)[0]), match[1] == "inc", converged=True)


@rule(r"griddepcontrol\.(launch_dependents|wait)")
def _dependents(low: Lowering, match: re.Match[str]) -> None:
    low.emit("griddepcontrol", [], match[1] == "wait")


@rule(r"nanosleep\.u32")
def _sleep(low: Lowering, match: re.Match[str]) -> None:
    low.operands(1)
    low.emit("nanosleep", [])


@rule(r"trap|brkpt")
def _trap(low: Lowering, match: re.Match[str]) -> None:
    low.emit("trap", [])


@rule(
    r"clusterlaunchcontrol\.try_cancel\.async(?:\.shared::cta)?\.mbarrier::complete_tx::bytes(\.multicast::cluster::all)?\.b128"
)
def _cancel(low: Lowering, match: re.Match[str]) -> None:
    to, barrier = (low.narrow_address(operand) for operand in low.operands(2))
    slots = []
    for slot, offset in (to, barrier):
        if offset:
            fresh = low.asm.register()
            low.emit("add_32", [fresh, slot, low.asm.constant(offset)])
            slot = fresh
        slots.append(slot)
    low.emit("clc_try_cancel", slots, int(bool(match[1])))


@rule(r"clusterlaunchcontrol\.query_cancel\.is_canceled\.pred\.b128")
def _is_canceled(low: Lowering, match: re.Match[str]) -> None:
    p, response = low.operands(2)
    slot = low.src(response, 128)
    low.emit("clc_is_canceled", [low.dst_predicate(p), slot, slot + 2])


@rule(r"clusterlaunchcontrol\.query_cancel\.get_first_ctaid(?:\.v4\.b32|::([xyz])\.b32)\.b128")
def _first_cta(low: Lowering, match: re.Match[str]) -> None:
    d, response = low.operands(2)
    slot = low.src(response, 128)
    first = "xyz".index(match[1]) if match[1] else 0
    for n, element in enumerate(low.elements(d)):
        if (target := low.dst(element)) != ABSENT:
            low.emit("mov_32", [target, slot + first + n])
