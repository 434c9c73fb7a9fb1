"""Whether the weights that a run starts from are the same files."""

import random

from bumblecore_core.run.lock import SAMPLE_BYTES, weights_fingerprint


def test_the_fingerprint_of_weights_tells_names_sizes_and_bytes_apart(tmp_path):
    def fingerprint(name, **files):
        (tmp_path / name).mkdir()
        for file, data in files.items():
            (tmp_path / name / file.replace("_", ".")).write_bytes(data)
        return weights_fingerprint(tmp_path / name)

    small, large = b"small", random.Random(0).randbytes(3 * SAMPLE_BYTES + 17)
    first = fingerprint("first", model_safetensors=small, config_json=b"1")
    assert first == fingerprint("copy", model_safetensors=small, config_json=b"other", notes_txt=b"x")
    others = {
        first,
        fingerprint("renamed", other_safetensors=small),
        fingerprint("longer", model_safetensors=small + b"\0"),
        fingerprint("bin", model_bin=small),
        fingerprint("two", model_safetensors=small, other_safetensors=small),
        fingerprint("changed", model_safetensors=b"smalk"),
        fingerprint("none"),
        fingerprint("empty", model_safetensors=b""),
    }
    assert len(others) == 8
    whole = fingerprint("large", model_safetensors=large)
    assert whole == fingerprint("large-copy", model_safetensors=large)
    for at in (0, SAMPLE_BYTES, len(large) // 2, len(large) - 1):  # so small a file is read wholly
        flipped = bytearray(large)
        flipped[at] ^= 1
        assert fingerprint(f"flipped-{at}", model_safetensors=bytes(flipped)) != whole
