"""The example of pictures code by code still runs."""

import runpy
from pathlib import Path

import pytest
from generators.codes_tiny import raster_pipeline, text_pipeline
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples" / "draw_codes.py"


@pytest.mark.parametrize(
    ("build", "wanted"), [(raster_pipeline, ("bag", "coat")), (text_pipeline, ("a bag", "a red apple"))]
)
def test_draw_codes(tmp_path, capsys, build, wanted):
    build().save_pretrained(tmp_path)
    main = runpy.run_path(str(EXAMPLE))["main"]
    drawn = main(str(tmp_path), *wanted, out=str(tmp_path / "drawn.png"), count=2)
    assert len(drawn) == 8
    assert "8 pictures of 8x8 px" in capsys.readouterr().out
    with Image.open(tmp_path / "drawn.png") as page:
        assert page.height > 4 * 56
