import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from edgewam.core.errors import ContractError
from edgewam.core.observation import compose_images
from edgewam.data.contact_sheet import make_sheet, write_html, write_png
from edgewam.data.dataset import Dataset
from tests.data.robotwin import robotwin, small_episode, write_v21


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return robotwin(tmp_path_factory.mktemp("sheet") / "set", (11, 30))


def test_pictures_are_the_canvases_of_evenly_spaced_steps(dataset):
    sheet = make_sheet(dataset, 1, num_pictures=4)
    assert sheet.steps.tolist() == [0, 10, 19, 29]
    assert (sheet.pictures.shape, sheet.shows) == ((4, 384, 320, 3), "composed as three_cameras")
    images = {camera: dataset.frames(1, camera, [10])[0] for camera in dataset.cameras}
    np.testing.assert_array_equal(sheet.pictures[1], compose_images(images, 384, 320))
    assert make_sheet(dataset, 0, num_pictures=99).steps.tolist() == list(range(11)), "never more than there are steps"


def test_png_shows_every_picture_with_room_for_its_label(dataset, tmp_path):
    sheet = make_sheet(dataset, 1, num_pictures=5)
    write_png(sheet, tmp_path / "sheet.png")
    paper = np.asarray(Image.open(tmp_path / "sheet.png"))
    for picture, (top, left) in zip(sheet.pictures, [(6, 6), (6, 332), (6, 658), (6, 984), (412, 6)], strict=True):
        np.testing.assert_array_equal(paper[top : top + 384, left : left + 320], picture)
        assert (paper[top + 384 : top + 400, left : left + 60] < 100).any(), "a label below"


def test_page_holds_pictures_and_a_curve_for_every_number(dataset, tmp_path):
    write_html(make_sheet(dataset, 1, num_pictures=4), tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4 and "step 29, 1.16 s" in page
    assert "Stack the blocks." in page and not re.search(r"https?://", page)
    states, actions = dataset.states(1), dataset.actions(1)
    drawn = re.findall(r"<svg.*?</svg>", page)
    assert len(drawn) == 14, "state and action of one name share a chart"
    lines = [line.attrib for line in ElementTree.fromstring(drawn[3]) if line.tag == "polyline"]
    low, high = min(states[:, 3].min(), actions[:, 3].min()), max(states[:, 3].max(), actions[:, 3].max())
    for line, values in zip(lines, (states[:, 3], actions[:, 3]), strict=True):
        points = np.array([point.split(",") for point in line["points"].split()], float)
        np.testing.assert_allclose(low + (1000 - points[:, 1]) / 1000 * (high - low), values, atol=2e-4)
    assert [line["class"] for line in lines] == ["engine", "second"]


def test_names_of_others_cannot_become_markup(tmp_path):
    path = write_v21(tmp_path / "<b>set", [small_episode(4, task="<script>alert(1)</script>")])
    write_html(make_sheet(Dataset.open(path)), tmp_path / "sheet.html")
    assert not re.search("<script|<b>", (tmp_path / "sheet.html").read_text())


def test_cameras_that_fit_no_composition_stand_in_a_row(tmp_path):
    one = small_episode(4, cameras=("cam_0", "cam_1"), state_dim=3, action_dim=2)
    dataset = Dataset.open(write_v21(tmp_path / "set", [one]))
    sheet = make_sheet(dataset)
    assert (sheet.pictures.shape, sheet.shows) == ((4, 24, 64, 3), "side by side")
    np.testing.assert_array_equal(sheet.pictures[2, :, 32:], dataset.frames(0, "cam_1", [2])[0])
    with pytest.raises(ContractError, match=r"\['cam_high', 'cam_left_wrist', 'cam_right_wrist'\].*There are: cam_0, cam_1"):
        make_sheet(dataset, composition="three_cameras")
    with pytest.raises(ContractError, match=r"episodes 0\.\.0"):
        make_sheet(dataset, 1)
