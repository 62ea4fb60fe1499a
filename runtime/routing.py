"""Whether a call may go to the kernel directly, or has to go through ``torch.ops`` so that torch sees it.

An operator asks, in its own body because a function call would be counted in the host cost of every kernel::

    if is_compiling() or dispatch_modes() or functorch_level() is not None or type(x) not in PLAIN: ...

``is_compiling``: torch.compile or torch.export is tracing. ``dispatch_modes``: FakeTensor, functionalisation, proxies
or any other mode of ``__torch_dispatch__`` is active. ``functorch_level``: inside vmap, grad or functionalize.
"""

from __future__ import annotations

import torch
from torch._C import _len_torch_dispatch_stack as dispatch_modes
from torch._C._functorch import peek_interpreter_stack as functorch_level
from torch.compiler import is_compiling

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
"""Types whose memory may be handed to a kernel. Any other subclass of Tensor decides for itself what a call means."""

__all__ = ["PLAIN", "dispatch_modes", "functorch_level", "is_compiling"]
