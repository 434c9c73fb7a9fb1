"""What each record's `build` must return. Parameters are keyword-only by convention and named as here.

These are structural types: a plugin class needs no base class, only the same method names and parameters.
"""

from typing import TYPE_CHECKING

from bumblecore_core.protocols.engines import Engine, EngineContext
from bumblecore_core.protocols.losses import FeedbackLoss, Loss, PreferenceLoss, RewardLoss, TokenLoss
from bumblecore_core.protocols.others import Adapter, AttentionFunctions, Logger
from bumblecore_core.protocols.rows import DataFormat, Row
from bumblecore_core.protocols.stages import Reference, Stage, StageContext

if TYPE_CHECKING:
    from bumblecore_core.protocols.engines import Scheduler as Scheduler

__all__ = [
    "Adapter",
    "AttentionFunctions",
    "DataFormat",
    "Engine",
    "EngineContext",
    "FeedbackLoss",
    "Logger",
    "Loss",
    "PreferenceLoss",
    "Reference",
    "RewardLoss",
    "Row",
    "Stage",
    "StageContext",
    "TokenLoss",
]
