import pytest
from PIL import Image

from benchmarks import growth


@pytest.fixture(scope="module")
def costs():
    """By model and setting; the models are of their true sizes, of which only shapes are made."""
    changes = {
        "base": {},
        "text": {"text": 512},
        "images": {"images": 12},
        "dots": {"remat": "dots"},
    }
    base = growth.BASE | {"model": "3b"}
    return {
        name: growth.cost(growth.config_of(**base | change)) for name, change in changes.items()
    }


def needed(cost) -> float:
    return sum(cost["tflop"].values()) - cost["tflop"]["recomputed"]


def test_text_costs_the_language_model_and_images_the_encoder(costs):
    base, text, images = (costs[name]["tflop"] for name in ("base", "text", "images"))
    assert text["lm"] > 2 * base["lm"]  # attention grows faster than text
    assert text["vision"] == base["vision"]
    assert images["vision"] == 2 * base["vision"]
    assert images["lm"] == base["lm"]
    assert costs["text"]["gib"]["state"] == pytest.approx(costs["base"]["gib"]["state"], rel=0.01)


def test_rematerialisation_buys_memory_with_operations(costs):
    assert needed(costs["dots"]) == pytest.approx(needed(costs["base"]))
    assert costs["dots"]["tflop"]["recomputed"] < costs["base"]["tflop"]["recomputed"]
    assert costs["dots"]["gib"]["activations"] > costs["base"]["gib"]["activations"]


def test_the_picture_has_every_axis(costs, tmp_path):
    found = [
        {"axis": axis, "value": value, **costs["base"]}
        for axis, (_, values) in growth.AXES.items()
        for value in values
    ]
    growth.draw(found, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(2**24)) > len(growth.COLORS)
