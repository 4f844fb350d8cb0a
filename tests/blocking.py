"""An `AsyncPostgresStorage` behind the methods of `Storage`, so that one contract is checked on both. Imports anyio."""

import inspect
from collections.abc import Callable
from datetime import timedelta
from functools import partial, wraps
from typing import Any, Self

from anyio.from_thread import BlockingPortal

from goqueue import AsyncListener, AsyncPostgresStorage, Storage


class _Blocking:
    """Each call runs in the portal's event loop, in another thread, and blocks until it ends."""

    def __init__(self, store: AsyncPostgresStorage, portal: BlockingPortal) -> None:
        self.store = store
        self.portal = portal


def _waiting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: _Blocking, *args: Any, **kwargs: Any) -> Any:
        return self.portal.call(partial(getattr(self.store, name), *args, **kwargs))

    @wraps(method)
    def iterate(self: _Blocking, *args: Any, **kwargs: Any) -> Any:
        items = getattr(self.store, name)(*args, **kwargs)
        try:
            while True:
                yield self.portal.call(anext, items)
        except StopAsyncIteration:
            pass
        finally:
            self.portal.call(items.aclose)

    return iterate if inspect.isasyncgenfunction(method) else call


class _BlockingListener:
    """A listener whose calls run in the portal's event loop."""

    def __init__(self, listener: AsyncListener, portal: BlockingPortal) -> None:
        self.listener = listener
        self.portal = portal

    def wait(self, timeout: timedelta) -> frozenset[str]:
        return self.portal.call(self.listener.wait, timeout)

    def close(self) -> None:
        self.portal.call(self.listener.close)

    def __enter__(self) -> Self:
        self.portal.call(self.listener.__aenter__)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _listen(self: _Blocking, queues: Any) -> _BlockingListener:
    return _BlockingListener(self.store.listen(queues), self.portal)


# On the class itself, where a runtime protocol looks for its methods.
for _name, _method in inspect.getmembers(AsyncPostgresStorage, inspect.isfunction):
    if not _name.startswith("_") and _name != "listen":
        setattr(_Blocking, _name, _waiting(_name, _method))
_Blocking.listen = _listen  # type: ignore[attr-defined]
for _name in ("enter", "exit"):
    _method = getattr(AsyncPostgresStorage, f"__a{_name}__")
    setattr(_Blocking, f"__{_name}__", _waiting(f"__a{_name}__", _method))


def blocking(store: AsyncPostgresStorage, portal: BlockingPortal) -> Storage:
    """Wrap ``store``, whose event loop is the portal's, for a blocking caller."""
    blocked = _Blocking(store, portal)
    assert isinstance(blocked, Storage)
    return blocked
