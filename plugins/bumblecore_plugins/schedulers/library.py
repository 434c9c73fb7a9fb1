"""`transformers.get_scheduler` without PEFT."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

HELPERS = "transformers.trainer_utils"
OF_PEFT = ("PeftModel", "PeftMixedModel")


def load_get_scheduler() -> Callable[..., Any]:
    """The function. Its module imports the helpers of transformers' trainer, and these import PEFT with all its tuners,
    which a run without an adapter does not use."""
    if HELPERS in sys.modules or "peft" in sys.modules:
        from transformers.optimization import get_scheduler
    else:
        with _peft_deferred():
            from transformers.optimization import get_scheduler
    return get_scheduler


@contextmanager
def _peft_deferred() -> Iterator[None]:
    """Modules of transformers that are imported inside see no PEFT until they next ask whether it is there."""
    from transformers import utils

    is_available, importing = utils.is_peft_available, True

    def is_peft_available() -> bool:
        if importing:
            return False
        found: bool = is_available()
        helpers = sys.modules[HELPERS]
        if found and not hasattr(helpers, OF_PEFT[0]):  # what the helpers would have imported
            import peft

            vars(helpers).update({name: getattr(peft, name) for name in OF_PEFT})
        return found

    utils.is_peft_available = is_peft_available
    try:
        yield
    finally:
        utils.is_peft_available, importing = is_available, False
