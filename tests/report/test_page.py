"""The page: whole and harmless HTML that needs nothing beside it, with what the runs say in it."""

import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from afa_jax.errors import UserError
from afa_jax.report import page, tables
from afa_jax.report.page import embedded, gallery, markup, summary
from tests.report import made

EVIL = '</script><b onclick="x()">&\'{{runs}}'
VOID = {"meta", "link", "img", "input", "br", "hr"}


class Reader(HTMLParser):
    """Notes elements with their attributes and text, and holds that each is closed by its own end."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attributes):
        raise AssertionError(f"<{tag}/>")

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for _, place in self.open:
            self.texts[place] = self.texts.get(place, "") + data

    def all(self, tag, **wanted):
        """(attributes, text) of the elements of a name."""
        return [
            (attributes, self.texts.get(i, ""))
            for i, (name, attributes) in enumerate(self.elements)
            if name == tag and all(attributes.get(k.replace("_", "-").rstrip("-")) == v for k, v in wanted.items())
        ]

    def data(self):
        ((_, text),) = self.all("script", id="data")
        return json.loads(text)


def analysed(run, *, evil=""):
    """Gives a written run two photos with attention."""
    folder = run.folder / "analysis" / "attention"
    folder.mkdir(parents=True)
    for name in ("0", "1", "over"):
        Image.new("RGBA" if name == "over" else "RGB", (300, 200), "red").save(folder / f"{name}.png")
    photos = [
        {
            "file": f"attention/{i}.png",
            "name": f"{i}{evil}.png",
            "class": "dog",
            "predicted": "cat",
            "probability": 0.25,
        }
        for i in range(2)
    ]
    overlay = {"stage": "ast", "tap": "layer1", "kind": "spatial", "file": "attention/over.png", "peak": 3.14159}
    channel = {**overlay, "stage": "act", "kind": "channel", "photo": 1, "top": [[7, 0.25], [3, 0.125]]}
    found = {"photos": photos, "overlays": [{**overlay, "photo": 0}, channel]}
    (folder.parent / "attention.json").write_text(json.dumps(found))
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two recipes with two seeds, one of them analysed, and one run on another data set with an evil name."""
    folder = tmp_path_factory.mktemp("runs")
    all_runs = made.labelled(
        made.run("l2", 0, 0.8, folder=folder),
        made.run("l2", 1, 0.82, folder=folder),
        made.run("afa", 0, 0.95, folder=folder, attention={"ast": 9700, "act": 4950}, command=f"echo {EVIL}"),
        made.run("afa", 1, 0.96, folder=folder, attention={"ast": 9700, "act": 4950}),
        made.run("l2", 0, 0.5, folder=folder, dataset="letters"),
    )
    for run in all_runs:
        made.write(run)
    analysed(all_runs[2], evil="</script>")
    all_runs[4].experiment["data"]["name"] = EVIL
    return all_runs


@pytest.fixture(scope="module")
def report(runs):
    return page.build(runs, [f"A run named {EVIL} is left out."])


@pytest.fixture(scope="module")
def reader(report):
    return Reader(report[0]["index.html"].decode())


def test_ids_are_unique_and_what_is_named_is_there(reader):
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in reader.elements:
        for name in ("aria-labelledby", "aria-controls", "for"):
            assert attributes.get(name, ids[0]) in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_the_script_finds_every_element_it_asks_for(reader):
    ids = {attributes.get("id") for _, attributes in reader.elements}
    script = reader.all("script")[-1][1]
    wanted = set(re.findall(r'byId\("([^"]+)"\)', script)) | {
        f"attention-{n}" for n in ("run", "photo", "stage", "tap")
    }
    assert len(wanted) > 15 and wanted <= ids
    assert script.startswith('"use strict";') and "innerHTML" not in script and "eval(" not in script


def test_nothing_is_fetched_from_anywhere(report, reader):
    for tag, attributes in reader.elements:
        for name in ("src", "href", "action", "srcset", "poster"):
            address = attributes.get(name, "#")
            # A figure's SVG stands beside the page for those without JavaScript.
            assert re.match(r"#|data:|figures/[\w.-]+\.svg$", address), f"{tag} {name}={address[:60]}"
    assert not re.search(r"url\(|@import", report[0]["index.html"].decode().split("</style>")[0])
    ((policy, _),) = reader.all("meta", http_equiv="Content-Security-Policy")
    assert "default-src 'none'" in policy["content"] and "unsafe" not in policy["content"]


def test_no_name_is_read_as_html(report, reader):
    assert not reader.all("b") and not any("onclick" in attributes for _, attributes in reader.elements)
    assert len(reader.all("script")) == 2
    assert any(text == f"echo {EVIL}" for _, text in reader.all("code"))
    assert EVIL in reader.all("ul")[0][1]  # what is left out
    assert reader.data()["curves"]["tasks"][1]["name"] == f"{EVIL}_5 · resnet18"
    assert all(re.fullmatch(r"(figures|tables)/[\w.-]+", name) for name in report[0] if name != "index.html")


def test_every_picture_and_control_says_what_it_is(reader):
    pictures = reader.all("img")
    assert len(pictures) >= 3 and all(len(attributes["alt"]) > 40 for attributes, _ in pictures)
    # The losses of both seeds are 1 / (step + place of the stage); at the end 1 / 4.
    assert "test cross-entropy: l2 0.333 ± 0.000, afa 0.250 ± 0.000" in pictures[0][0]["alt"]
    labels = "".join(text for _, text in reader.all("label"))
    for word in ("Search", "Data set", "Network", "Recipe", "Metric", "Strength of the overlay"):
        assert word in labels
    assert all(text.strip() for _, text in reader.all("button") + reader.all("a"))
    headers = [attributes for attributes, _ in reader.all("th", scope="col") if "data-kind" in attributes]
    assert len(headers) == 9 and all(attributes["aria-sort"] == "none" for attributes in headers)


def test_a_row_a_run_with_what_sorts_and_filters_it(reader, runs):
    bodies = [attributes for attributes, _ in reader.all("tbody") if "data-recipe" in attributes]
    assert [b["data-recipe"] for b in bodies] == [run.recipe for run in runs]
    values = [float(a["data-value"]) for a, text in reader.all("td") if re.fullmatch(r"\d\d\.\d\d", text)]
    assert values == pytest.approx([80, 82, 95, 96, 50])
    commands = [text for _, text in reader.all("code")]
    assert len(commands) == len(runs) and commands[0].startswith("python -m afa_jax.main")


def test_downloads_hold_the_files(report, reader):
    files = {name.split("/")[1]: content for name, content in report[0].items() if "/" in name}
    links = {a["download"]: a["href"] for a, _ in reader.all("a") if "download" in a}
    assert set(links) == set(files)
    for name, address in links.items():
        if name.endswith(".svg"):
            assert address == f"figures/{name}"
        else:
            assert base64.b64decode(address.partition(",")[2]) == files[name]
    shown = {base64.b64decode(a["src"].partition(",")[2]) for a, _ in reader.all("img")}
    assert shown == {content for name, content in files.items() if name.endswith(".svg")}


def test_curves_of_each_task_in_the_data(reader):
    digits, other = reader.data()["curves"]["tasks"]
    assert digits["name"] == "digits_5 · resnet18" and digits["labels"] == ["l2", "afa"] and other["labels"] == ["l2"]
    assert digits["boundaries"] == [[], [2]]
    l2, afa = digits["means"]["test"]["top1"]
    # Seeds end at 80 and 82 less 10 %-points at step 1, 5 at step 2.
    assert l2 == {"label": 0, "name": "", "n": 2, "x": [1, 2], "y": [71, 76], "d": [1.414, 1.414]}
    assert afa["x"] == [1, 2, 3, 4]
    single = digits["runs"]["train"]["cross_entropy"]
    assert [(line["label"], line["name"]) for line in single] == [
        (0, "seed 0"), (0, "seed 1"), (1, "seed 0"), (1, "seed 1")
    ]  # fmt: skip
    assert single[0]["y"] == [0.5, 0.3333] and "d" not in single[0]


def test_attention_in_the_data(reader):
    found = reader.data()["attention"]
    (run,) = found["runs"]
    assert run["name"] == "afa, seed 0 — digits_5 · resnet18"
    first, second = run["photos"]
    assert (first["name"], first["true"], first["predicted"], first["probability"]) == (
        "0</script>.png", "dog", "cat", 0.25
    )  # fmt: skip
    assert first["overlays"][0]["peak"] == 3.14 and second["overlays"][0]["top"] == [[7, 0.25], [3, 0.125]]
    assert len(found["pictures"]) == 2  # both photos are alike, and both overlays
    assert first["picture"] == second["picture"]
    assert all(picture.startswith("data:image/") for picture in found["pictures"])


def test_the_same_runs_make_the_same_page(runs, report):
    assert page.build(runs, [f"A run named {EVIL} is left out."])[0] == report[0]


def test_what_is_left_out_is_told_on_the_page(report, reader):
    ((_, text),) = [found for found in reader.all("details") if found[0].get("class") == "left-out"]
    for sentence in report[1]:
        assert sentence in text
    assert any("data.per_class" in sentence for sentence in report[1])


def test_many_curves_are_thinned_and_ends_stay():
    runs = [made.run("l2", seed, records=[made.record("l2", k, "train", 1 / k, 0.5) for k in range(1, 2001)])
            for seed in range(3)]  # fmt: skip
    (task,) = embedded.curves(runs)["tasks"]
    for line in (*task["means"]["train"]["loss"], *task["runs"]["train"]["loss"]):
        assert len(line["x"]) == len(line["y"]) == embedded.MOST_POINTS and (line["x"][0], line["x"][-1]) == (1, 2000)
    numbers = json.dumps(embedded.curves(runs * 200)).count(",")
    assert numbers < 5 * embedded.CURVE_NUMBERS


def test_verdicts_in_plain_words():
    def sentence(**values):
        runs = [made.run(recipe, seed, top1) for recipe, found in values.items() for seed, top1 in enumerate(found)]
        (verdict,) = summary.verdicts(made.labelled(*runs))
        return verdict.best, verdict.sentence

    far, near, low = (0.9, 0.91, 0.9), (0.89, 0.92, 0.9), (0.5, 0.51, 0.5)
    assert sentence(a=low, b=far) == (
        "b", "Mean over 3 seeds. Better than a by more than noise explains (Welch's t-test, p < 0.05)."
    )  # fmt: skip
    best, said = sentence(a=far, b=near, c=low)
    assert (
        best in "ab" and f"Not told apart from {'b' if best == 'a' else 'a'}, within the noise; better than c" in said
    )
    assert "within the noise" in sentence(a=far, b=near)[1]
    assert sentence(a=(0.9,))[1] == (
        "One run only, which says nothing of its noise. There is no other recipe to compare it with."
    )
    assert "each of the 2 others" in sentence(a=far, b=low, c=(0.6, 0.61, 0.6))[1]


def test_best_and_published_figures_are_marked():
    cells = tables.Cell((90.0, 91.0), best=True, published=(88.7, 0.1)), tables.Cell((80.0,)), None
    table = tables.Table("T", ("a", "b", "c"), (tables.Row("afa", cells),), ("note",))
    reader = Reader(page.sections.comparison([(table, "t", {"md": "x"})]))
    assert reader.all("strong") == [({}, "90.5 ± 0.7")] and reader.all("small") == [({}, "published 88.7 ± 0.1")]


def test_file_names_are_harmless_and_differ():
    taken: set[str] = set()
    names = [gallery.unique(gallery.slug(text), taken) for text in ("a/../b", "A . b", "a-..-B", "", "..")]
    assert names == ["a-..-b", "A-.-b", "a-..-B-2", "unnamed", "unnamed-2"]


def test_markup_escapes_text_and_attributes():
    assert markup.tag("p", "<&>", markup.tag("b", "x"), title='"', hidden=True, id=False, data_x=1) == (
        '<p title="&quot;" hidden data-x="1">&lt;&amp;&gt;<b>x</b></p>'
    )
    assert json.loads(markup.script_json([EVIL, "<!--"])) == [EVIL, "<!--"]
    assert "<" not in markup.script_json(EVIL)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generalisation.json", "{"),
        ("generalisation.json", '{"train": {"loss": NaN}, "test": {"loss": 1}, "gap": 1}'),
        ("filter_distances.json", '{"stages": {"layer1": {"quantiles": [1, 2]}}}'),
        ("attention.json", '{"photos": [{"file": "../../summary.json"}], "overlays": []}'),
        ("attention.json", '{"photos": [{"file": "gone.png"}], "overlays": []}'),
        ("attention.json", "[]"),
        ("activation_maps.npz", "no archive"),
        ("parts.json", '{"layer": 1}'),
        ("dissection.json", '{"layer": "x", "threshold": 1, "target": {"detectors": 3}, "source": {}}'),
    ],
)
def test_a_damaged_analysis_is_told_and_the_rest_is_made(tmp_path, name, content, monkeypatch):
    monkeypatch.setattr(gallery, "KINDS", [kind for kind in gallery.KINDS if kind.reads])
    run = made.run(folder=tmp_path)
    (made.write(run) / "analysis").mkdir()
    (run.folder / "analysis" / name).write_text(content)
    files, sentences = page.build([run])
    (told,) = [sentence for sentence in sentences if str(tmp_path) in sentence]
    assert name in told and "make it again with tools/analyse.py" in told
    assert "index.html" in files


def test_a_damaged_picture_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "KINDS", [])
    run = made.run(folder=tmp_path)
    made.write(run)
    (analysed(run).folder / "analysis" / "attention" / "over.png").write_bytes(b"no")
    files, sentences = page.build([run])
    assert any("A picture in" in sentence and "is damaged" in sentence for sentence in sentences)
    assert Reader(files["index.html"].decode()).data()["attention"]["runs"] == []


def test_whole_analyses_become_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "KINDS", [kind for kind in gallery.KINDS if kind.reads])
    run = made.run(folder=tmp_path)
    folder = made.write(run) / "analysis"
    folder.mkdir()
    parts = {"mean": 0.4, "sum": 5.0, "parts": {"beak": {"mean": 0.4, "count": 3}}}
    units = {"detectors": {"object": 3}, "units": []}
    written = {
        "generalisation": {"train": {"loss": 0.1}, "test": {"loss": 0.4}, "gap": 0.3},
        "filter_distances": {"stages": {"layer1": {"filters": 2, "quantiles": list(range(101))}}},
        "parts": {"target": parts, "source": parts, "layer": "layer4"},
        "dissection": {"layer": "layer4", "threshold": 0.04, "target": units, "source": units},
    }
    for name, content in written.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    shape = np.zeros((1, 2, 3, 3), np.float32)
    np.savez(folder / "activation_maps.npz", photos=np.zeros((1, 8, 8, 3), np.uint8), names=np.array(["a.png"]),
             layer="layer4", channels=np.array([1, 2]), source=shape, target=shape)  # fmt: skip
    drawings, problems = gallery.draw_all([run])
    assert problems == [] and [drawing.name.split("-")[0] for drawing in drawings] == [
        "filter_distances", "generalisation_gap", "activation_maps", "parts", "detectors"
    ]  # fmt: skip
    assert "gap, l2: 0.300" in drawings[1].alt


def test_an_old_report_is_replaced_and_nothing_else(tmp_path):
    folder = tmp_path / "report"
    new = {"index.html": page.GENERATOR.encode(), "figures/a.svg": b"new"}
    page.write({"index.html": page.GENERATOR.encode(), "figures/old.svg": b"old"}, folder)
    page.write(new, folder)
    assert {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()} == new
    assert [child.name for child in tmp_path.iterdir()] == ["report"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files than a report \(notes\.txt\)"):
        page.write(new, folder)
    (folder / "notes.txt").unlink()
    (folder / "index.html").write_text("another page")
    with pytest.raises(UserError, match="is no report of this program"):
        page.write(new, folder)
    assert (folder / "index.html").read_text() == "another page"
    with pytest.raises(UserError, match="is a file, not a folder"):
        page.write(new, folder / "index.html")
    with pytest.raises(UserError, match="The report cannot be written to"):
        page.write(new, folder / "index.html" / "below")


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    folder = tmp_path / "report"
    page.write({"index.html": page.GENERATOR.encode()}, folder)
    with pytest.raises(UserError, match="The report cannot be written"):
        page.write({"index.html": b"new", "index.html/x": b""}, folder)
    assert (folder / "index.html").read_text() == page.GENERATOR
    assert [child.name for child in tmp_path.iterdir()] == ["report"]


def test_no_run_no_page():
    with pytest.raises(UserError, match=r"There is no finished run to report on\. x is not finished"):
        page.build([], ["x is not finished."])
