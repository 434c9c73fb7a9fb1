"""Plugins: found through entry points, validated, and looked up by kind and name.

Entry points of the group `bumblecore` are the only door, for built-ins too. Nothing here imports torch.
"""

from bumblecore_core.registry.collect import collect, load_registry
from bumblecore_core.registry.discover import PluginInfo, discover
from bumblecore_core.registry.lookup import Provided, Registry, singular
from bumblecore_core.registry.options import OptionLine, describe_options
from bumblecore_core.registry.switches import PluginSwitches
from bumblecore_core.registry.validate import record_problems

__all__ = [
    "OptionLine",
    "PluginInfo",
    "PluginSwitches",
    "Provided",
    "Registry",
    "collect",
    "describe_options",
    "discover",
    "load_registry",
    "record_problems",
    "singular",
]
