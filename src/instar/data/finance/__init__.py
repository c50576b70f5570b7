"""News joined to daily prices without looking into the future, in a store that is brought up to date as often as one likes.

The procedure is that of FNSPID (Dong, Fan and Peng, KDD 2024), made restartable and honest about time. Needs `instar[finance]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from instar.data.finance.config import Config, read_config
    from instar.data.finance.experiment import sentiment_effect
    from instar.data.finance.loading import load_daily
    from instar.data.finance.pipeline import NewsPricePipeline
    from instar.data.finance.transport import ReplayTransport

_WHERE = {
    "Config": "config",
    "NewsPricePipeline": "pipeline",
    "ReplayTransport": "transport",
    "load_daily": "loading",
    "read_config": "config",
    "sentiment_effect": "experiment",
}
__all__ = ["Config", "NewsPricePipeline", "ReplayTransport", "load_daily", "read_config", "sentiment_effect"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}; it has {', '.join(__all__)}")
