"""LeRobot's files beside its weights are foreign text: what cannot be read is refused by name."""

import pytest

from edgewam.core.errors import ArtifactError
from edgewam.recipes.convert_lerobot import PREPROCESSOR, lerobot_stats


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "not JSON"])
def test_a_preprocessor_that_cannot_be_read_is_named_with_the_option_that_replaces_it(text, tmp_path):
    (tmp_path / PREPROCESSOR).write_text(text)
    with pytest.raises(ArtifactError, match=rf"{PREPROCESSOR}.*--stats"):
        lerobot_stats(tmp_path)
