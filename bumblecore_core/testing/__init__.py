"""The conformance kit: what a plugin's own tests call to know that BumbleCore will accept it.

Every check raises `AssertionError` saying what is wrong, and returns nothing that a test must look at. Only the checks
of losses import torch.
"""

from bumblecore_core.testing.formats import check_data_format
from bumblecore_core.testing.loggers import check_logger
from bumblecore_core.testing.losses import (
    check_feedback_loss,
    check_preference_loss,
    check_reward_loss,
    check_token_loss,
)
from bumblecore_core.testing.plugin import check_import_is_light, check_plugin, check_record

__all__ = [
    "check_data_format",
    "check_feedback_loss",
    "check_import_is_light",
    "check_logger",
    "check_plugin",
    "check_preference_loss",
    "check_record",
    "check_reward_loss",
    "check_token_loss",
]
