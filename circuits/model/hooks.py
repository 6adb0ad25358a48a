"""Where hooks meet a model: a hook gets tensors of its own, and what hooks change is seen by one thread alone."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

from torch import Tensor
from transformer_lens import hook_points
from transformer_lens.hook_points import LensHandle

Key = TypeVar("Key")


class HookPoint(hook_points.HookPoint):
    """TransformerLens's hook point, but a hook that writes into its tensor writes into nothing else.

    What passes by may be a weight, a view of one, or a tensor that is read again further on. So each forward hook is
    given a copy, and the pass goes on with it. Without hooks nothing is copied.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x itself, or a copy where a hook is about to see it."""
        return x.clone() if self._forward_hooks else x

    def add_hook(
        self, hook: Callable[..., Any], dir: Literal["fwd", "bwd"] = "fwd", *args: Any, **kwargs: Any
    ) -> LensHandle:
        """As in TransformerLens."""
        own = partial(self._apart, hook) if dir == "fwd" else hook
        handle = super().add_hook(own, dir, *args, **kwargs)
        handle.user_hook = hook
        return handle

    def _apart(self, function: Callable[..., Any], value: Tensor, hook: Any) -> Any:
        """What a hook makes of the value: of a copy, where other hooks have seen this very tensor or will."""
        if len(self._forward_hooks) == 1:
            return function(value, hook=hook)
        mine = value.clone()
        found = function(mine, hook=hook)
        return mine if found is None else found


def keep(store: dict[Key, Tensor], key: Key, value: Tensor, hook: Any) -> None:
    """A hook that keeps what passes by: `partial(keep, store, key)`."""
    store[key] = value


class Turn:
    """One thread at a time; whoever has the turn may take it again. A copy of a model has a turn of its own.

    Hooks, cut weights and sparse compute change what a model computes until they are taken back, so whoever uses them
    has the model to itself until then: passes in other threads wait.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def __deepcopy__(self, memo: Any) -> "Turn":
        return Turn()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Turn, ()
