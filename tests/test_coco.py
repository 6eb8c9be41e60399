"""extras/coco.py: what becomes of a small COCO folder, and of one on a server."""
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from unittest.mock import DEFAULT, Mock
from zipfile import ZipFile

import pytest
from PIL import Image

from data import read_folder, read_lines
from driving import refused, write_lines
from extras import coco

CATEGORIES = [{"id": 10, "name": "dog"}, {"id": 90, "name": "wine glass"}]
NAME = "COCO_val2014_{:012}.png"


@pytest.fixture
def convert(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["coco", str(tmp_path)])
    return coco.main


def annotate(folder, name, **content):
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / f"annotations/{name}.json").write_text(json.dumps(content), "utf-8-sig")


def make_part(folder, part, first, captions=None, count=2, **instances):
    """`count` pictures of one part of COCO, with ids from `first` on; their red is their id."""
    (folder / part).mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": NAME.format(i)} for i in range(first, first + count)]
    for i, name in (image.values() for image in images):
        Image.new("RGB", (240, 200), (i, 37 * i % 256, 0)).save(folder / part / name)
    objects = [{"image_id": first, "category_id": n} for n in (10, 90, 10)]
    right = {"images": images, "annotations": objects, "categories": CATEGORIES}
    annotate(folder, f"instances_{part}", **right | instances)
    right = [{"image_id": x["id"], "caption": f" Picture\n{x['id']}. "} for x in images[1:]]
    captions = right if captions is None else captions
    annotate(folder, f"captions_{part}", annotations=captions, images=images)


def test_both_parts_of_2014_are_written_as_the_trainer_reads_them(tmp_path, convert, capsys):
    for part, first in (("train2014", 1), ("val2014", 5), ("val2017", 7)):
        make_part(tmp_path, part, first)
    questions = [{"question_id": 3, "question": "What is it?"}]
    annotate(tmp_path, "v2_OpenEnded_mscoco_val2014_questions", questions=questions)
    answer = {"question_id": 3, "image_id": 5, "multiple_choice_answer": "a dog"}
    empty = [answer | {"question_id": 4}, answer | {"multiple_choice_answer": None}]
    annotate(tmp_path, "v2_mscoco_val2014_annotations", annotations=[answer, *empty])
    annotate(tmp_path, "mscoco_val2014_annotations")  # of VQA v1
    convert()
    printed = capsys.readouterr().out  # says what is read
    assert "{'entries that are empty or about other pictures': 2}" in printed
    assert "v2_mscoco_val" in printed and "/mscoco_val" not in printed and "2017" not in printed
    train, val = read_folder(tmp_path, 16)
    told = [e for e in train.captions if "Picture" in e.answer]  # others are of objects
    assert [e.answer for e in told + val.captions[:1]] == ["Picture 2.", "Picture 6."]
    assert [train.images[e.picture, 8, 8, 0] for e in told] == [2]
    assert [names for names in train.objects if names] == [["dog", "wine glass"]]
    [vqa] = [e for e in val.questions if e.kind == "vqa"]
    assert (val.images[vqa.picture, 8, 8, 0], *vqa[1:3]) == (5, "What is it?", "a dog")


@pytest.mark.parametrize("name", ["train.jsonl", "val.jsonl"])
def test_no_file_is_replaced_or_left_from_before(tmp_path, convert, name):
    make_part(tmp_path, "val2017", 5)
    target = tmp_path / "by hand"
    (tmp_path / name).symlink_to(target)
    for _ in range(2):  # without a target, and with one
        refused(f"{name} is there already: delete it first", convert)
        assert not target.exists() or target.read_text() == "by hand"
        target.write_text("by hand")
    assert [path.name for path in tmp_path.glob("*.jsonl")] == [name]


@pytest.mark.parametrize("changes, told", [
    ({"images": [{"id": "5", "file_name": "val2017/" + NAME.format(5)}]}, "1 lines about 1 pic"),
    ({"images": [{"id": 6, "file_name": NAME.format(i)} for i in (6, 5, 7)]}, "their own': 2"),
    ({"categories": [CATEGORIES[0], {"id": 90, "name": None}, {"id": 91}]}, "2 lines about 2 pic"),
    ({"captions": [{"image_id": "6", "caption": x} for x in ("a", None, " ", 7)]}, "pictures': 3")])
def test_what_is_left_out_is_counted(tmp_path, convert, capsys, changes, told):
    make_part(tmp_path, "val2017", 5, **changes)
    convert()
    line = capsys.readouterr().out.split("\n")[-2]
    assert told in line and "entries that are empty or about other pictures': " in line


@pytest.mark.parametrize("file", ["coco_pope_random.json", "pope/any.json"])
def test_pictures_that_pope_asks_about_are_left_out(tmp_path, convert, capsys, file):
    make_part(tmp_path, "train2017", 310195)
    (tmp_path / "pope").mkdir()
    write_lines(tmp_path / file, [{"image": "COCO_val2014_000000310196.jpg", "label": "yes"}] * 2)
    convert()
    assert "'pictures that POPE asks about': 1" in capsys.readouterr().out
    [line] = (tmp_path / "train.jsonl").read_text().splitlines()
    assert json.loads(line) == {"image": "train2017/" + NAME.format(310195),
                                "objects": ["dog", "wine glass", "dog"]}


def test_files_in_another_format_end_with_a_line_that_names_them(tmp_path, convert):
    refused("no folder of pictures (train2014, ", convert)
    make_part(tmp_path, "val2014", 5, captions=[], annotations=[])
    refused("nothing is written", convert)
    for text in ("[]", "{", "{}", '{"images": [3]}', '{"images": null}', "\xff"):
        (tmp_path / "annotations/instances_val2014.json").write_text(text, "latin-1")
        refused("instances_val2014.json: images, categories, annotations: lists of", convert)
    assert not (tmp_path / "train.jsonl").exists()


def answer(body, length=None, status=200):
    return b"HTTP/1.0 %d X\r\nContent-Length: %d\r\n\r\n" % (status, length or len(body)) + body


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        answers = self.server.faults.get(self.path) or [answer]
        self.wfile.write(answers.pop()((self.server.folder / self.path[1:]).read_bytes()))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of the folder server/. site.get() downloads from it into the folder coco/."""
    folder, goal = tmp_path / "server", tmp_path / "coco"
    make_part(folder, "train2014", 1, count=12)
    make_part(folder, "val2014", 201, count=4)
    vqa = [{"question_id": 3, "image_id": 203, "question": "Who?", "multiple_choice_answer": "I"}]
    annotate(folder, "v2_OpenEnded_mscoco_val2014_questions", questions=vqa)
    annotate(folder, "v2_mscoco_val2014_annotations", annotations=vqa)
    for url in coco.QUESTIONS:
        write_lines(folder / url.split("/")[-1], [{"image": NAME.format(i)} for i in (201, 203)])
    for name, value in {"PAUSE": 0, "HELD_OUT": 3, "THREADS": 4}.items():
        monkeypatch.setattr(coco, name, value)

    def get(count=99):
        for url in coco.ARCHIVES:
            with ZipFile(folder / url.split("/")[-1], "w") as archive:
                for path in (folder / "annotations").iterdir():
                    archive.write(path, f"../../{path.name}")
        url = f"http://127.0.0.1:{site.server_port}/"
        monkeypatch.setattr(sys, "argv", ["coco", str(goal), "--get", str(count), "--from", url])
        coco.main()
        assert (len([*goal.iterdir()]), len([*tmp_path.iterdir()])) == (6, 2)  # nothing elsewhere
        return [{line["image"] for _, line in read_lines(goal / f"{name}.jsonl")}
                for name in ("train", "val", "test")]

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as site:
        site.folder, site.goal, site.get, site.faults, site.asked = folder, goal, get, {}, []
        Thread(target=site.serve_forever, args=[0.01], daemon=True).start()
        yield site
        site.shutdown()


def test_after_ctrl_c_a_second_call_ends_with_what_the_trainer_and_pope_read(site, monkeypatch):
    shrink = Mock(wraps=coco.shrink, side_effect=[KeyboardInterrupt, *[DEFAULT] * 99])
    monkeypatch.setattr(coco, "shrink", shrink)
    refused("stopped; the same command goes on from here", site.get, 6)
    site.get(6)
    assert len(site.asked) - 1 == len({*site.asked}) == 5 + 3 + 6 + 3 + 2
    parts = read_folder(site.goal, 16, names=["train", "val", "test"])
    assert [len(part.hashes) for part in parts] == [6, 3, 2]
    assert "Who?" in [e.prompt for e in parts[2].questions]
    for _, question in read_lines(site.goal / "pope/coco_pope_random.json"):
        assert Image.open(site.goal / "val2014" / question["image"]).size == (192, 160)
    refused("test.jsonl is there already: delete it first", site.get)
    with pytest.raises(SystemExit, match="^2$"):  # from argparse
        site.get(0)


def test_a_larger_n_keeps_the_pictures_whatever_their_order(site, monkeypatch):
    train, *others = site.get(4)
    monkeypatch.setattr(coco, "read", lambda *x, read=coco.read: [y[::-1] for y in read(*x)])
    for count in (6, 2):
        for path in site.goal.glob("*.jsonl"):
            path.unlink()
        site.asked.clear()
        now, *others_now = site.get(count)
        assert others_now == others and len(now) == count and (now > train or now < train)
        assert {x for x in site.asked if "/COCO_" in x} == {f"/{name}" for name in now - train}


@pytest.mark.parametrize("path, fault", [
    ("/annotations_trainval2014.zip", lambda body: answer(body[:-50])),
    ("/annotations_trainval2014.zip", lambda body: answer(body.replace(b"dog", b"cat"))),
    ("/coco_pope_popular.json", lambda body: answer(body[:len(body) // 2], len(body))),
    ("/coco_pope_popular.json", lambda body: answer(b"Sorry")),
    ("/train2014/" + NAME.format(4), lambda body: answer(body, len(body) - 50)),
    ("/train2014/" + NAME.format(4), lambda body: answer(b"Sorry")),
    ("/train2014/" + NAME.format(4), lambda body: answer(body, status=500))])
def test_what_fails_is_tried_three_times_and_the_next_call_goes_on(site, path, fault):
    site.faults[path] = [fault] * 4
    refused("the same command goes on from here", site.get)
    assert site.asked.count(path) == 3 and not [*site.goal.glob("*.jsonl")]
    assert [len(images) for images in site.get()] == [9, 3, 2]
    assert sorted(site.asked) == sorted([*{*site.asked}, *[path] * 4])


def test_one_picture_in_a_hundred_may_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coco, "fetch", lambda url, *_: url)
    pictures = dict.fromkeys(map(str, range(99))) | {"x": "404"}
    assert coco.get_pictures(pictures, tmp_path, tmp_path) == pictures.keys() - {"x"}
    assert f"{tmp_path}: 1 of 100 pictures failed 404" in capsys.readouterr().out


def test_names_and_addresses_that_lead_elsewhere_are_refused(tmp_path):
    def listed(name, url="http://x"):
        annotate(tmp_path, "captions_val2014", images=[{"file_name": name, "coco_url": url}])
        return [*coco.list_pictures(tmp_path / "annotations", "val2014", None)]

    assert listed("../../x.jpg", "http://y/z.jpg") == [("x.jpg", "http://y/z.jpg")]
    for given in ([".."], [""], [".x.jpg"], ["x.jpg", "file:///etc/passwd"]):
        refused("is wanted", listed, *given)
