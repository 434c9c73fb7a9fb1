"""Files beside a model that prepare images, audio and video: copied to what is saved, never read here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bumblecore_core.toolkit.adapters import adapter_chain

LEGACY_TEMPLATE = "chat_template.json"
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    LEGACY_TEMPLATE,
)


def processor_files(directory: Path) -> tuple[Path, ...]:
    """The processor files of a model's directory; of an adapter's, its own or its base's."""
    base, adapters = adapter_chain(directory)
    places = [*reversed(adapters), base]
    found = [next((place / name for place in places if (place / name).is_file()), None) for name in PROCESSOR_FILES]
    return tuple(file for file in found if file is not None)


def copy_processor_files(files: tuple[Path, ...], directory: Path, tokenizer: Any) -> None:
    """Copies `files` into `directory`, where `tokenizer` is saved. A processor prefers the legacy template file to the
    `chat_template.jinja` that the tokenizer has written, so it is copied only where the tokenizer has none."""
    for file in files:
        if file.name != LEGACY_TEMPLATE or not tokenizer.chat_template:
            shutil.copyfile(file, directory / file.name)
