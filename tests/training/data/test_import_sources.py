"""Known sources, each in small as its files are: taken without help, or with the one question that is open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

import anyo
from training.checks import check_learnable
from training.data import DataError, Dataset, read_dataset
from training.data.importing import ImportOptions, import_data, parse_events
from training.data.splits import leave_one_out
from training.recipes import get_recipe
from training.run import RunOptions, run

T = 1_400_000_000
NEWS = "news\tworld\tA storm\tRain.\thttp://x\t[]\t[]"
SOURCES: dict[str, dict[str, str]] = {
    "MovieLens 100K": {
        "u.data": "1\t1\t5\t881250949\n1\t2\t3\t881250950\n2\t1\t4\t881250951\n",
        "u.item": "1|Toy Story (1995)|01-Jan-1995||http://x|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
        "2|Matrix, The (1999)|01-Jan-1999||http://x|0|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n",
        "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
        "u1.base": "1\t1\t5\t881250949\n",
    },
    "MovieLens 1M": {
        "ratings.dat": f"1::1::5::{T}\n1::2::3::{T + 1}\n2::1::4::{T}\n",
        "movies.dat": "1::Toy Story (1995)::Animation|Comedy\n2::Matrix, The (1999)::Action\n",
        "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
    },
    "MovieLens csv": {
        "ratings.csv": f"userId,movieId,rating,timestamp\n1,1,4.0,{T}\n1,2,4.0,{T + 1}\n2,1,4.0,{T}\n",
        "movies.csv": 'movieId,title,genres\n1,Toy Story (1995),Animation\n2,"Matrix, The (1999)",Action\n',
        "tags.csv": f"userId,movieId,tag,timestamp\n2,2,dark,{T}\n",
        "links.csv": "movieId,imdbId,tmdbId\n1,114709,862\n",
    },
    "RecBole": {
        "x.inter": f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        f"1\t1\t4\t{T}\n1\t2\t3\t{T + 1}\n2\t1\t3\t{T}\n",
        "x.item": "item_id:token\tmovie_title:token_seq\tclass:token_seq\n"
        "1\tToy Story (1995)\tAnimation Comedy\n2\tThe Matrix (1999)\tAction\n",
        "x.user": "user_id:token\tage:token\n1\t24\n",
    },
    "Amazon 2014": {
        "reviews.json": "".join(
            json.dumps({"reviewerID": u, "asin": i, "overall": 5.0, "reviewText": "Fine.", "unixReviewTime": t}) + "\n"
            for u, i, t in (("1", "1", T), ("1", "2", T + 1), ("2", "1", T))
        ),
        "meta.json": "{'asin': '1', 'title': 'Toy Story (1995)', 'categories': [['Films', 'Toys']], "
        "'brand': \"Disney's\"}\n"
        "{'asin': '2', 'title': 'The Matrix (1999)', 'price': 9.5, 'salesRank': {'Films': 3}}\n",
    },
    "Amazon 2023": {
        "reviews.jsonl": "".join(
            json.dumps(
                {"user_id": u, "asin": "v", "parent_asin": i, "rating": 5, "title": "Good", "text": "x", "timestamp": t}
            )
            + "\n"
            for u, i, t in (("1", "1", 1000 * T), ("1", "2", 1000 * T + 1), ("2", "1", 1000 * T))
        ),
        "meta.jsonl": '{"parent_asin": "1", "title": "Toy Story (1995)", "store": "Disney", '
        '"details": {"Year": "1995"}}\n'
        '{"parent_asin": "2", "title": "The Matrix (1999)", "features": ["Dark", "Loud"], "price": null}\n',
    },
    "MIND": {
        "behaviors.tsv": "1\t1\t11/11/2019 9:05:58 AM\tN1\tN2-1 N1-0\n2\t2\t11/12/2019 6:11:30 PM\t\tN1-1 N2-0\n",
        "news.tsv": f"N1\t{NEWS}\nN2\t{NEWS}\n".replace("A storm", "Toy Story (1995)", 1).replace(
            "A storm", "The Matrix (1999)", 1
        ),
    },
    "Last.fm 1K": {
        "userid-timestamp-artid-artname-traid-traname.tsv": "".join(
            f"user_{u}\t2009-05-0{t}T23:08:57Z\ta\tPixar\t{i}\t{name}\n"
            for u, i, t, name in (
                (1, 1, 1, "Toy Story (1995)"),
                (1, 2, 2, "The Matrix (1999)"),
                (2, 1, 1, "Toy Story (1995)"),
            )
        )
    },
}
TITLES = {"1": ["Toy Story (1995)", "The Matrix (1999)"], "2": ["Toy Story (1995)"]}


def made(where: Path, given: dict[str, str], expected: int = 0, **options: object) -> Dataset:
    source = where / "source"
    source.mkdir()
    for name, content in given.items():
        (source / name).write_text(content)

    def confirm(_: str, doubts: object) -> bool:
        assert len(doubts) == expected, doubts  # type: ignore[arg-type]
        return True

    import_data([source], where / "out", ImportOptions(**options), confirm)  # type: ignore[arg-type]
    return read_dataset(where / "out")


def sequences(data: Dataset, what: tuple[str, ...]) -> dict[str, list[str]]:
    return {
        user.removeprefix("user_"): [what[row] for row in data.sequence(at)] for at, user in enumerate(data.user_ids)
    }


@pytest.mark.parametrize("name", SOURCES)
def test_a_known_source_needs_no_help(name: str, tmp_path: Path) -> None:
    data = made(tmp_path, SOURCES[name])
    assert sequences(data, data.titles) == TITLES


def test_brand_attributes_and_reviews_come_along(tmp_path: Path) -> None:
    data = made(tmp_path, SOURCES["Amazon 2023"])
    by_title = {row["title"]: row for row in data.items.to_dicts()}
    assert by_title["Toy Story (1995)"]["brand"] == "Disney"
    assert by_title["Toy Story (1995)"]["attributes"] == "Year: 1995"
    assert set(data.columns["summary"]) == {"Good"}


LOGS = {
    "SASRec": ({"Video.txt": "1 10\n1 20\n2 10\n"}, 0),
    "LightGCN": ({"test.txt": "1 10 20\n2 10\n3 \n"}, 0),
    "Epinions": ({"ratings_data.txt": "1 10 4\n1 20 5\n2 10 3 \n"}, 1),
    "Taobao": ({"UserBehavior.csv": f"1,10,7,pv,{T}\n1,20,7,buy,{T + 1}\n2,10,7,pv,{T}\n"}, 1),
    "YooChoose": ({"clicks.dat": "1,2014-04-07T10:51:09.277Z,10,0\n"
    "1,2014-04-07T10:54:09.868Z,20,0\n2,2014-04-07T10:51:09.277Z,10,0\n"}, 0),
    "Retailrocket": (
        {"events.csv": f"timestamp,visitorid,event,itemid,transactionid\n"
        f"{T}000,1,view,10,\n{T}001,1,view,20,\n{T}000,2,view,10,\n"},
        0,
    ),
    "OTTO": (
        {
            "train.jsonl": '{"session": 1, "events": [{"aid": 10, "ts": 1659304800025, "type": "clicks"}, '
            '{"aid": 20, "ts": 1659304904511, "type": "carts"}]}\n'
            '{"session": 2, "events": [{"aid": 10, "ts": 1659304800025, "type": "clicks"}]}\n'
        },
        1,
    ),
    "Last.fm HetRec": ({"user_artists.dat": "userID\tartistID\tweight\n1\t10\t13883\n1\t20\t11690\n2\t10\t11351\n"}, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_logs_without_titles(name: str, tmp_path: Path) -> None:
    given, questions = LOGS[name]
    data = made(tmp_path, given, questions)
    assert sequences(data, data.item_ids) == {"1": ["10", "20"], "2": ["10"]}
    assert data.items["title_missing"].all()


def test_kinds_of_events_are_chosen(tmp_path: Path) -> None:
    data = made(tmp_path, LOGS["Taobao"][0], events=parse_events("buy"))
    assert sequences(data, data.item_ids) == {"1": ["20"]}


def test_ids_without_titles_are_enough_for_sasrec(tmp_path: Path) -> None:
    walks = "".join(f"{user} {10 + (user + step) % 9}\n" for user in range(20) for step in range(5))
    data = made(tmp_path, {"log.txt": walks})
    small = ["items.dim=16", "backbone.width=16", "optimizer.epochs=1"]
    run(get_recipe("sasrec", small), data, RunOptions(out=tmp_path / "artifact"), Console(quiet=True))
    answer = anyo.load(tmp_path / "artifact").recommend(["10"], k=3)
    assert len({item.item_id for item in answer} - {"10"}) == 3
    with pytest.raises(DataError, match="title"):
        check_learnable(get_recipe("anyo", backbone="tiny"), leave_one_out(data))
