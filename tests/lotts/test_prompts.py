"""Facts about prompt sets, on small files in the form of the published ones."""

import json

import pytest

from lotts.prompts import Prompt, load_prompts
from lotts.shapes.scenes import parse


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_drawbench(tmp_path):
    path = written(
        tmp_path, "drawbench.csv", 'Prompts,Category\r\nA red colored car.,Colors\r\n"One cat, two dogs.",Counting\r\n'
    )
    assert load_prompts(path) == [Prompt("A red colored car.", "Colors"), Prompt("One cat, two dogs.", "Counting")]


def test_partiprompts_keep_their_quotation_marks(tmp_path):
    rows = 'Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tConcepts\n"Fly an airplane" on a wall \tArts\tComplex\t\n'
    found = load_prompts(written(tmp_path, "PartiPrompts.tsv", rows))
    assert found == [Prompt("bond", "Abstract"), Prompt('"Fly an airplane" on a wall', "Arts")]


def test_geneval(tmp_path):
    line = {"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "a photo of two clocks"}
    found = load_prompts(written(tmp_path, "evaluation_metadata.jsonl", json.dumps(line) + "\n\n"))
    assert found == [Prompt("a photo of two clocks", "counting")]


def test_pick_a_pic_as_json_lines(tmp_path):
    lines = [{"caption": "a cat"}, {"caption": "a dog"}, {"caption": "a cat"}]
    found = load_prompts(written(tmp_path, "pickapic.jsonl", "\n".join(map(json.dumps, lines))))
    assert found == [Prompt("a cat"), Prompt("a dog")]  # one prompt has many pairs of pictures there


def test_coco_gives_the_first_caption_of_each_image(tmp_path):
    annotations = [
        {"image_id": 9, "id": 5, "caption": "A bicycle."},
        {"image_id": 3, "id": 7, "caption": "Later. "},
        {"image_id": 3, "id": 2, "caption": "A clock tower.\n"},
    ]
    path = written(tmp_path, "captions_val2014.json", json.dumps({"images": [], "annotations": annotations}))
    assert load_prompts(path) == [Prompt("A clock tower."), Prompt("A bicycle.")]


def test_lines_and_strings(tmp_path):
    expected = [Prompt("a cat"), Prompt("a dog")]
    assert load_prompts(written(tmp_path, "a.txt", "\ufeffa cat\n\n a dog \na cat\n")) == expected
    assert load_prompts(written(tmp_path, "a.jsonl", '"a cat"\n{"prompt": "a dog"}\n')) == expected
    assert load_prompts(written(tmp_path, "b.txt", "a cat\na dog\n"), limit=1) == expected[:1]


def test_drawn_scenes_are_held_out_and_counted():
    found = load_prompts("shapes:40")
    scenes = [parse(prompt.text) for prompt in found]
    assert len({prompt.text for prompt in found}) == 40
    assert all(scene.held_out() for scene in scenes)
    assert {prompt.group for prompt in found} == {"2-4 objects", "5-8 objects", "9-12 objects", "13-16 objects"}
    assert load_prompts("shapes:20") == found[:20]
    crowded = load_prompts("shapes:6@9-10")
    assert [len(parse(prompt.text).items) for prompt in crowded] == [9, 10] * 3
    assert {prompt.group for prompt in crowded} == {"9-12 objects"}


@pytest.mark.parametrize(
    "source", ["shapes:", "shapes:0", "shapes:5@1-3", "shapes:5@9-20", "shapes:5@9-3", "shapes:many"]
)
def test_a_wrong_count_of_scenes_is_refused(source):
    with pytest.raises(ValueError, match="expected shapes:COUNT"):
        load_prompts(source)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "Title,Kind\nx,y\n", "expected one of Prompts, .* got Title, Kind"),
        (
            "a.csv",
            "Category,Prompts\nx,y\nz\n",
            "expected a prompt in line 3 of .*a.csv, got a row that ends before it",
        ),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"\n', "expected JSON in line 2"),
        ("a.jsonl", "[1]\n", "expected a string or an object in line 1"),
        ("a.json", "{}", "expected COCO captions"),
        ("a.json", '{"annotations": [{"caption": "x"}]}', "expected COCO captions"),
        ("a.txt", "\n \n", "expected prompts in .*got none"),
        ("a.parquet", "PAR1", r"to_json\('prompts.jsonl'"),
        ("a.yaml", "- a", "expected prompts in .txt"),
    ],
)
def test_what_is_no_set_of_prompts_is_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        load_prompts(written(tmp_path, name, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        load_prompts(str(tmp_path / "absent.txt"))


def test_commas_without_quotation_marks_are_told(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt\na red circle, a blue star in a row\na red ring left of a blue star\n")
    with pytest.raises(ValueError, match=r"line 2 of .* got more cells: put quotation marks"):
        load_prompts(str(path))
    path.write_text('prompt\n"a red circle, a blue star in a row"\na red ring left of a blue star\n')
    assert next(iter(load_prompts(str(path)))).text == "a red circle, a blue star in a row"


def test_cells_that_are_empty_beyond_the_first_row_are_none(tmp_path):
    (tmp_path / "p.csv").write_text("prompt,group\na red circle,x,\n")
    (tmp_path / "p.tsv").write_text("Prompt\tCategory\na red circle\tx\t\n")
    for name in ("p.csv", "p.tsv"):
        assert load_prompts(str(tmp_path / name)) == [Prompt("a red circle", "x")]
    (tmp_path / "p.tsv").write_text("Prompt\tCategory\na red circle\tx\ty\n")
    with pytest.raises(ValueError, match="a tab too many"):
        load_prompts(str(tmp_path / "p.tsv"))


def test_a_quotation_mark_that_is_never_closed_is_told(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('Prompts,Category\n"unclosed,b\nz,y\n')
    with pytest.raises(ValueError, match="expected a table of prompts"):
        load_prompts(str(path))


def test_half_a_letter_is_no_prompt(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('"a red circle"\n{"prompt": "a cat \\ud83d"}\n')
    with pytest.raises(ValueError, match=r"expected prompts of whole letters .* 'a cat \\ud83d'"):
        load_prompts(str(path))


def test_coco_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "captions.json"
    entries = [{"id": 1, "image_id": 2, "caption": "a cat"}]
    path.write_text(json.dumps({"annotations": entries}), encoding="utf-8-sig")
    assert [prompt.text for prompt in load_prompts(str(path))] == ["a cat"]
    path.write_text(json.dumps({"annotations": [*entries, {"id": 2, "image_id": "b", "caption": "a dog"}]}))
    with pytest.raises(ValueError, match="expected COCO captions"):
        load_prompts(str(path))
