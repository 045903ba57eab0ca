"""Data sets by name, fetched from a server on this machine that breaks off, changes files and states checksums."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from training.data import DataError, load_dataset, read_dataset
from training.data.fetched import amazon, movielens
from training.data.fetched.download import Checksum, DownloadError, download
from training.data.fetched.named import Source, ensure_named, known_names

QUIET = Console(quiet=True)


class Files(BaseHTTPRequestHandler):
    """Serves `server.files` with ranges; breaks off after `server.breaks` bytes, once per number in that list."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        content = server.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", etag)
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: server.breaks.pop(0)] if server.breaks else rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.files, server.requests, server.breaks = {}, [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server, path, **options):
    return download(f"{server.url}/big.bin", path, console=QUIET, pause_seconds=0, **options)


BIG = bytes(range(256)) * 2000


# ------------------------------------------------------------------------------------------------ download


def test_a_broken_connection_is_taken_up_where_it_ended(server, tmp_path):
    server.files["big.bin"], server.breaks = BIG, [100_000, 150_000]
    digest = fetch(server, tmp_path / "big.bin")
    assert (tmp_path / "big.bin").read_bytes() == BIG and digest == hashlib.sha256(BIG).hexdigest()
    assert [asked for _, asked, _ in server.requests] == [None, "bytes=100000-", "bytes=250000-"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.bin", "checksums.json"]


def test_a_later_run_asks_only_for_what_is_missing(server, tmp_path):
    server.files["big.bin"], server.breaks = BIG, [200_000, 0, 0, 0]
    with pytest.raises(DownloadError, match=r"ended early; 200,000 bytes are kept, and the same command goes on"):
        fetch(server, tmp_path / "big.bin")
    assert not (tmp_path / "big.bin").exists()
    server.requests.clear()
    fetch(server, tmp_path / "big.bin")
    assert (tmp_path / "big.bin").read_bytes() == BIG
    assert [asked for _, asked, _ in server.requests] == ["bytes=200000-"]


def test_a_file_that_changed_in_between_is_fetched_anew_and_never_mixed(server, tmp_path):
    server.files["big.bin"], server.breaks = BIG, [200_000, 0, 0, 0]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "big.bin")
    server.files["big.bin"] = BIG[::-1]
    fetch(server, tmp_path / "big.bin")
    assert (tmp_path / "big.bin").read_bytes() == BIG[::-1]


def test_more_than_the_server_has_is_dropped(server, tmp_path):
    server.files["big.bin"] = BIG
    etag = f'"{hashlib.sha256(BIG).hexdigest()[:16]}"'
    (tmp_path / "big.bin.part").write_bytes(BIG + b"x")
    (tmp_path / "big.bin.part.version").write_text(etag)
    fetch(server, tmp_path / "big.bin")
    assert (tmp_path / "big.bin").read_bytes() == BIG


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    server.files["big.bin"] = BIG
    fetch(server, tmp_path / "big.bin")
    server.requests.clear()
    fetch(server, tmp_path / "big.bin")
    assert server.requests == []


def test_a_wrong_checksum_removes_the_file_and_says_both_digests(server, tmp_path):
    server.files["big.bin"] = BIG
    wrong = Checksum("md5", "0" * 32)
    with pytest.raises(DownloadError, match=f"has md5 {hashlib.md5(BIG).hexdigest()}; its publisher states {'0' * 32}"):
        fetch(server, tmp_path / "big.bin", published=wrong)
    assert not (tmp_path / "big.bin").exists()
    fetch(server, tmp_path / "big.bin", published=Checksum("md5", hashlib.md5(BIG).hexdigest()))


def test_without_a_stated_checksum_the_first_download_is_trusted_and_later_ones_compared(server, tmp_path):
    server.files["big.bin"] = BIG
    fetch(server, tmp_path / "big.bin")
    (tmp_path / "big.bin").unlink()
    server.files["big.bin"] = BIG[:-1]
    with pytest.raises(DownloadError, match=r"the first download had [0-9a-f]{64}.*checksums\.json"):
        fetch(server, tmp_path / "big.bin")
    assert not (tmp_path / "big.bin").exists() and not (tmp_path / "big.bin.part").exists()


def test_a_file_damaged_on_disk_is_noticed(server, tmp_path):
    server.files["big.bin"] = BIG
    fetch(server, tmp_path / "big.bin")
    (tmp_path / "big.bin").write_bytes(BIG[:-1])
    with pytest.raises(DownloadError, match="has sha256"):
        fetch(server, tmp_path / "big.bin")


def test_a_missing_page_and_a_dead_server_are_one_sentence(server, tmp_path):
    with pytest.raises(DownloadError, match=r"big\.bin could not be downloaded: HTTP Error 404"):
        fetch(server, tmp_path / "big.bin")
    assert len(server.requests) == 1, "asking again does not help"
    with pytest.raises(DownloadError, match=r"could not be downloaded: .*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "x", console=QUIET, pause_seconds=0)
    with pytest.raises(DownloadError, match="is no http address"):
        download("file:///etc/hostname", tmp_path / "x", console=QUIET)


# ------------------------------------------------------------------------------------------------ movielens


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


MOVIES = ["Matrix, The (1999)", "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)", "Heat (1995)", "Up (2009)",
          "Go (1999)", "Rare (2000)"]  # fmt: skip


def ratings(join, users=6):
    """Six users rate movies 1 to 5 in one second each; user 99 rates too little, user 98 too little without movie 6."""
    rows = [(u, m, 4, 1000 + u) for u in range(1, users + 1) for m in range(1, 6)]
    rows += [(99, 6, 5, 7), (99, 1, 5, 8), *((98, m, 5, 9) for m in (1, 2, 3, 4, 6))]
    return "".join(join.join(map(str, row)) + "\n" for row in rows)


def movielens_1m():
    movies = "".join(f"{n}::{title}::Drama|Comedy\n" for n, title in enumerate(MOVIES, start=1))
    return zipped({"ml-1m/movies.dat": movies.encode("latin-1"), "ml-1m/ratings.dat": ratings("::")})


def movielens_small():
    movies = "movieId,title,genres\n" + "".join(
        f'{n},"{title}",{"(no genres listed)" if n == 3 else "Drama|Comedy"}\n'
        for n, title in enumerate(MOVIES, start=1)
    )
    # ratings.csv has the time last, after the rating
    return zipped(
        {
            "ml-latest-small/movies.csv": movies,
            "ml-latest-small/ratings.csv": "userId,movieId,rating,timestamp\n" + ratings(","),
        }
    )


def movielens_sources(server):
    return {
        "movielens-1m": Source(
            server.url,
            ("ml-1m.zip",),
            movielens.convert_1m,
            "terms",
            md5=hashlib.md5(server.files["ml-1m.zip"]).hexdigest(),
        ),
        "movielens-small": Source(
            server.url, ("ml-latest-small.zip",), movielens.convert_latest_small, "terms", md5_page=True
        ),
    }


@pytest.mark.parametrize("name", ["movielens-1m", "movielens-small"])
def test_movielens_is_fetched_checked_and_converted(server, tmp_path, name):
    server.files |= {"ml-1m.zip": movielens_1m(), "ml-latest-small.zip": movielens_small()}
    page = f"MD5 (ml-latest-small.zip) = {hashlib.md5(server.files['ml-latest-small.zip']).hexdigest()}\n"
    server.files["ml-latest-small.zip.md5"] = page.encode()
    folder = ensure_named(name, tmp_path, console=QUIET, sources=movielens_sources(server))
    dataset = read_dataset(folder, strict=True)
    assert (dataset.n_users, dataset.n_items, dataset.n_interactions) == (6, 5, 30), "five of each at least"
    titles = dict(zip(dataset.item_ids, dataset.titles, strict=True))
    assert titles["1"] == "The Matrix (1999)"
    assert titles["2"] == "Amélie (Le Fabuleux destin d'Amélie Poulain) (2001)"
    categories = dict(zip(dataset.item_ids, dataset.categories, strict=True))
    assert categories["1"] == ("Drama", "Comedy")
    assert categories["3"] == (() if name == "movielens-small" else ("Drama", "Comedy"))
    orders = {tuple(dataset.item_ids[row] for row in dataset.sequence(u)) for u in range(6)}
    assert len(orders) > 1, "ratings of one second must not stand by id"
    origin = json.loads((folder / "source.json").read_text())
    assert origin["name"] == name and origin["files"][0]["checked_against"].startswith("the publisher's md5")
    server.requests.clear()
    assert ensure_named(name, tmp_path, console=QUIET, sources=movielens_sources(server)) == folder
    assert server.requests == [], "what is there is not fetched again"


def test_a_changed_archive_is_refused_by_the_page_with_its_checksum(server, tmp_path):
    server.files |= {"ml-1m.zip": b"", "ml-latest-small.zip": movielens_small()}
    server.files["ml-latest-small.zip.md5"] = b"MD5 (ml-latest-small.zip) = " + b"0" * 32
    with pytest.raises(DownloadError, match=r"movielens-small: .* its publisher states 000"):
        ensure_named("movielens-small", tmp_path, console=QUIET, sources=movielens_sources(server))
    assert not (tmp_path / "movielens-small").exists()
    server.files["ml-latest-small.zip.md5"] = b"<html>moved</html>"
    with pytest.raises(DownloadError, match="states no MD5 checksum"):
        ensure_named("movielens-small", tmp_path, console=QUIET, sources=movielens_sources(server))


def test_without_a_checksum_page_the_first_download_counts(server, tmp_path):
    server.files |= {"ml-1m.zip": b"", "ml-latest-small.zip": movielens_small()}
    folder = ensure_named("movielens-small", tmp_path, console=QUIET, sources=movielens_sources(server))
    assert "first download" in json.loads((folder / "source.json").read_text())["files"][0]["checked_against"]


def test_an_archive_of_something_else_is_refused_and_leaves_no_folder(server, tmp_path):
    server.files["ml-1m.zip"] = zipped({"other.txt": "x"})
    with pytest.raises(DataError, match=r"ml-1m\.zip is not the expected archive"):
        ensure_named("movielens-1m", tmp_path, console=QUIET, sources=movielens_sources(server))
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]


def test_no_network_says_what_to_do_instead(tmp_path):
    sources = {
        "movielens-1m": Source("http://127.0.0.1:9", ("ml-1m.zip",), movielens.convert_1m, "terms", md5="0" * 32)
    }
    with pytest.raises(DownloadError, match="Without a network, give --data a folder"):
        ensure_named("movielens-1m", tmp_path, console=QUIET, sources=sources)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("American President, The", "The American President"),
        ("Seven (a.k.a. Se7en) (1995)", "Seven (a.k.a. Se7en) (1995)"),
        ("City, The (Cité des enfants perdus, La) (1995)", "The City (La Cité des enfants perdus) (1995)"),
        ("Enfer, L' (1994)", "L'Enfer (1994)"),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly (1966)"),
        ("I Love You, Man (2009)", "I Love You, Man (2009)"),
        ("Monsters, Inc. (2001)", "Monsters, Inc. (2001)"),
    ],
)  # fmt: skip
def test_trailing_articles_go_to_the_front(title, expected):
    assert movielens.article_first(title) == expected


# ------------------------------------------------------------------------------------------------ amazon


def amazon_files():
    reviews = [
        {"reviewerID": f"R{u}", "asin": f"B00{m}", "unixReviewTime": 1_400_000_000 + 86_400 * u, "overall": 5.0,
         "summary": "Nice, &quot;really&quot;", "reviewText": "long text"}
        for u in range(4) for m in range(8)
    ]  # fmt: skip
    products = [
        {"asin": "B000", "title": "Kit &amp; Bag", "categories": [["Beauty", "Tools", "Brushes"], ["Beauty", "Tools"]],
         "brand": "Acme", "description": "It's a\nkit", "related": {"also_bought": ["B001"]}},
        {"asin": "B001", "imUrl": "x"},
        {"asin": "B999", "title": "Nobody reviewed this"},
    ]  # fmt: skip
    lines = [repr(product) for product in products]
    lines.append(json.dumps({"asin": "B002", "title": "As JSON", "categories": [["Beauty"]]}))
    return {
        "reviews_Beauty_5.json.gz": gzip.compress("\n".join(map(json.dumps, reviews)).encode()),
        "meta_Beauty.json.gz": gzip.compress("\n".join(lines).encode()),
    }


def amazon_source(server):
    files = ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz")
    return {"amazon-beauty": Source(server.url, files, partial(amazon.convert, category="Beauty"), "terms")}


def test_amazon_is_fetched_and_converted(server, tmp_path):
    server.files |= amazon_files()
    dataset = read_dataset(
        ensure_named("amazon-beauty", tmp_path, console=QUIET, sources=amazon_source(server)), strict=True
    )
    assert (dataset.n_users, dataset.n_items, dataset.n_interactions) == (4, 8, 32)
    items = {row["item_id"]: row for row in dataset.items.to_dicts()}
    kit = items["B000"]
    assert (kit["title"], kit["categories"], kit["brand"]) == ("Kit & Bag", ["Tools", "Brushes"], "Acme")
    assert kit["description"] == "It's a kit" and not kit["title_missing"]
    assert items["B001"]["title"] == "Unnamed beauty product" and items["B001"]["title_missing"]
    assert items["B002"]["title"] == "As JSON" and items["B002"]["categories"] == []
    assert "B999" not in items
    assert set(dataset.columns["summary"]) == {'Nice, "really"'} and set(dataset.columns["rating"]) == {5.0}
    orders = {tuple(dataset.item_ids[row] for row in dataset.sequence(u)) for u in range(4)}
    assert len(orders) > 1, "reviews of one day must not stand by id"


def gzipped(content: bytes) -> bytes:
    """Without the time, so that every process that runs tests gives the test the same name."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("reviews_Beauty_5.json.gz", gzipped(b'{"asin": "B1"}'), r"Beauty_5\.json\.gz:1: not a review \('rev"),
        ("reviews_Beauty_5.json.gz", amazon_files()["reviews_Beauty_5.json.gz"][:-9], "cannot be unpacked"),
        ("meta_Beauty.json.gz", gzipped(b"{'asin': 'B000', 'x': dir()}"), r"Beauty\.json\.gz:1: not a product"),
    ],
)  # fmt: skip
def test_damaged_amazon_files_are_refused_by_line(server, tmp_path, file, content, message):
    server.files |= {**amazon_files(), file: content}
    with pytest.raises(DataError, match=message):
        ensure_named("amazon-beauty", tmp_path, console=QUIET, sources=amazon_source(server))
    assert not (tmp_path / "amazon-beauty").exists()


# ------------------------------------------------------------------------------------------------ load_dataset


def test_names_folders_and_neither(tmp_path, monkeypatch):
    assert {"demo", "movielens-1m", "movielens-small", "amazon-beauty", "amazon-toys-and-games"} <= set(known_names())
    monkeypatch.chdir(tmp_path)
    dataset = load_dataset("demo", console=QUIET)
    assert dataset.name == "demo" and (tmp_path / "data" / "demo" / "items.jsonl").exists()
    assert load_dataset("data/demo").sha256 == dataset.sha256 == load_dataset(tmp_path / "data" / "demo").sha256
    with pytest.raises(
        DataError, match="'movielens' is neither a folder nor a known data set; known: demo, movielens-1m"
    ):
        load_dataset("movielens")


def test_a_demo_of_another_generator_is_made_again_and_a_folder_of_the_users_own_is_kept(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "source.json").write_text(json.dumps({"name": "demo", "generator": -1, "seed": 20}))
    (folder / "items.jsonl").write_text("old")
    ensure_named("demo", tmp_path, console=QUIET)
    assert len((folder / "items.jsonl").read_text().splitlines()) == 1200
    (folder / "source.json").unlink()
    (folder / "items.jsonl").write_text("mine")
    with pytest.raises(DataError, match="is there but is not the data set demo"):
        ensure_named("demo", tmp_path, console=QUIET)
    assert (folder / "items.jsonl").read_text() == "mine"
